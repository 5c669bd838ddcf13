"""What a worker has taken is its own for as long as it lives: no longer, and not a moment less."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from celery.result import AsyncResult

from tasks import app
from tests.chaos import ledger, work
from tests.integration import sample
from tests.integration.system import System, Worker
from tests.waiting import wait_until

LEASE_S = 1.0
#: So long that no test waits for its end.
LONG_LEASE = "1h"
PROMPTLY_S = 3.0


def start(system: System, *options: str, lease: str = f"{LEASE_S}s", concurrency: int = 1) -> Worker:
    imports = "tests.integration.sample,tests.chaos.work"
    return system.start_worker(*options, lease=lease, concurrency=concurrency, imports=imports)


def enter(path: Path, duration_s: float, *numbers: int) -> list[AsyncResult]:
    return [work.enter.delay(number, str(path), duration_s) for number in numbers]


def attempts(path: Path, number: int = 0) -> list[ledger.Attempt]:
    return ledger.read(path).get(number, [])


def wait_for_attempt(path: Path, count: int = 1, *, number: int = 0, timeout_s: float = 10.0) -> ledger.Attempt:
    """A task's attempt, which begins in this time."""
    wait_until(
        lambda: len(attempts(path, number)) >= count, what=f"attempt {count} of task {number}", timeout_s=timeout_s
    )
    return attempts(path, number)[count - 1]


def by_name(system: System, name: str) -> Worker:
    return next(worker for worker in system.workers if worker.name == name)


def each_ran_once(path: Path, numbers: Iterable[int], results: list[AsyncResult]) -> None:
    for number, result in zip(numbers, results, strict=True):
        assert [result.get(timeout=20)] == [attempt.id for attempt in attempts(path, number)]


def test_a_task_longer_than_the_lease_runs_once(system: System, path: Path) -> None:
    """The lease is renewed for as long as its worker lives."""
    for _ in range(2):
        start(system)
    results = enter(path, 3 * LEASE_S, 0)
    each_ran_once(path, [0], results)


def test_a_task_whose_message_is_acknowledged_as_it_begins_has_its_result(system: System) -> None:
    """Nobody can tell by the message whether this worker still has it."""
    start(system)
    assert [sample.add_once.delay(number, 1).get(timeout=10) for number in range(5)] == [1, 2, 3, 4, 5]


def test_a_dead_workers_task_runs_again_soon_after_its_lease(system: System, path: Path) -> None:
    for _ in range(2):
        start(system)
    (result,) = enter(path, 4 * LEASE_S, 0)
    by_name(system, wait_for_attempt(path).worker).kill()
    again = wait_for_attempt(path, 2, timeout_s=LEASE_S + 5)
    assert result.get(timeout=20) == again.id
    assert len(attempts(path)) == 2


def test_a_worker_stopped_for_longer_than_its_lease_has_lost_its_task_and_knows(system: System, path: Path) -> None:
    """Its child goes on and ends first; that counts for nothing, since the task is another worker's by then."""
    for _ in range(2):
        start(system)
    (result,) = enter(path, 4 * LEASE_S, 0)
    first = wait_for_attempt(path)
    stopped = by_name(system, first.worker)
    stopped.process.send_signal(signal.SIGSTOP)
    second = wait_for_attempt(path, 2, timeout_s=LEASE_S + 5)
    stopped.wait_for_log("recorded nowhere: another worker has it by now")
    assert attempts(path)[0].ended_at is not None
    assert attempts(path)[1].ended_at is None
    assert not result.ready()
    stopped.process.send_signal(signal.SIGCONT)
    stopped.wait_for_log("not heard of for longer than its lease")
    assert result.get(timeout=20) == second.id
    assert second.worker != first.worker
    wait_until(lambda: not system.in_flight(), what="the second one's acknowledgement")
    by_name(system, second.worker).stop()
    assert sample.add.delay(1, 2).get(timeout=10) == 3  # the stopped one works on
    assert app.AsyncResult(result.id).result == second.id
    assert len(attempts(path)) == 2


def test_a_runs_last_step_is_run_while_its_first_message_is_still_in_flight(system: System) -> None:
    """Both have the run's id. The worker that has built the canvas may be slow to acknowledge that."""
    builder = start(system, lease=LONG_LEASE)
    go, started = system.folder / "go", system.folder / "started"
    run = work.slow_to_build.delay(str(go), str(started))
    wait_until(started.exists, what="the workflow's start")
    start(system, lease=LONG_LEASE)
    builder.process.send_signal(signal.SIGSTOP)
    go.touch()
    assert run.get(timeout=10) == 3


@pytest.mark.parametrize("whole_worker", [False, True], ids=["process", "worker"])
def test_a_chords_body_is_sent_though_who_was_about_to_send_it_is_killed(system: System, whole_worker: bool) -> None:
    """Celery lets one process send it; that one's word must not outlive it."""
    for _ in range(2):
        start(system)
    run = work.killed_before_its_body.delay(str(system.folder / "killed"), whole_worker)
    assert run.get(timeout=20) == 1


def test_a_broken_connection_does_not_run_again_what_a_child_may_have_begun(system: System, path: Path) -> None:
    worker = start(system, lease=LONG_LEASE)
    (child,) = worker.children()
    os.kill(child, signal.SIGSTOP)
    (result,) = enter(path, 0.0, 0)
    worker.wait_for_log("received")
    start(system, lease=LONG_LEASE)
    for kind in ("normal", "pubsub"):
        system.client.execute_command("CLIENT", "KILL", "TYPE", kind)
    worker.wait_for_log("Connected to", times=2)
    others = [sample.add.delay(1, 2) for _ in range(3)]
    wait_until(lambda: any(other.ready() for other in others), what="a task of the other worker")
    os.kill(child, signal.SIGCONT)
    each_ran_once(path, [0], [result])


def test_a_broken_connection_does_not_run_again_what_runs(system: System, path: Path) -> None:
    start(system, "--prefetch-multiplier", "4", concurrency=2)
    numbers = range(8)
    results = enter(path, 1.0, *numbers)
    for running in (0, 2, 4):
        wait_for_attempt(path, number=running)
        for kind in ("normal", "pubsub"):
            assert system.client.execute_command("CLIENT", "KILL", "TYPE", kind)
    each_ran_once(path, numbers, results)


def test_a_broker_frozen_for_longer_than_the_lease_takes_nothing_from_those_that_live(
    system: System, path: Path
) -> None:
    for _ in range(2):
        start(system)
    numbers = range(2)
    results = enter(path, 3 * LEASE_S, *numbers)
    for number in numbers:
        wait_for_attempt(path, number=number)
    with system.frozen_broker():
        wait_until(lambda: all(attempts(path, number)[0].ended_at for number in numbers), what="the tasks' end")
    each_ran_once(path, numbers, results)


def test_workers_outlive_a_broker_that_comes_back_empty(system: System) -> None:
    """Leases, queues and bindings are gone; the workers make them again."""
    worker = start(system)
    assert sample.add.delay(1, 2).get(timeout=10) == 3
    system.client.flushall()
    system.restart_broker()
    assert wait_until(lambda: app.control.ping(timeout=0.5), what="an answer", timeout_s=20) == [
        {f"{worker.name}@test": {"ok": "pong"}}
    ]
    assert sample.add.delay(1, 3).get(timeout=10) == 4
    assert worker.process.poll() is None


def test_a_worker_outlives_an_emptied_broker_that_runs_on(system: System) -> None:
    worker = start(system)
    assert sample.add.delay(1, 2).get(timeout=10) == 3
    system.client.flushall()
    worker.wait_for_log("not heard of for longer than its lease")
    assert sample.add.delay(1, 3).get(timeout=10) == 4


def test_a_worker_that_is_ending_gives_back_at_once_what_has_not_started(system: System, path: Path) -> None:
    first, *others = enter(path, 5.0, 0) + enter(path, 0.0, 1, 2, 3)
    ending = start(system, "--prefetch-multiplier", "4", lease=LONG_LEASE)
    wait_for_attempt(path)
    wait_until(lambda: system.in_flight() == 4, what="four messages in hand")
    ending.process.terminate()
    wait_until(lambda: system.in_flight() == 1, what="the return of three", timeout_s=PROMPTLY_S)
    start(system, lease=LONG_LEASE)
    for number in (1, 2, 3):
        wait_for_attempt(path, number=number, timeout_s=PROMPTLY_S)
    assert attempts(path)[0].ended_at is None
    each_ran_once(path, range(4), [first, *others])


def test_a_worker_that_ends_with_its_tasks_gives_them_back_at_once(system: System, path: Path) -> None:
    """SIGQUIT; or an impatient second Ctrl-C."""
    quitting = start(system, lease=LONG_LEASE)
    (result,) = enter(path, 8.0, 0)
    wait_for_attempt(path)
    start(system, lease=LONG_LEASE)
    quitting.process.send_signal(signal.SIGQUIT)
    again = wait_for_attempt(path, 2, timeout_s=PROMPTLY_S)
    assert quitting.process.wait(10) is not None
    assert result.get(timeout=20) == again.id
    assert len(attempts(path)) == 2


def test_a_worker_that_is_ending_keeps_what_a_child_may_have_begun(system: System, path: Path) -> None:
    """Its main process learns a moment later than its child that a task has begun; SIGTERM may come in between."""
    ending = start(system, lease=LONG_LEASE)
    (child,) = ending.children()
    os.kill(child, signal.SIGSTOP)
    (result,) = enter(path, 0.0, 0)
    ending.wait_for_log("received")
    start(system, lease=LONG_LEASE)
    ending.process.terminate()
    ending.wait_for_log("Warm shutdown")
    sample.add.delay(1, 2).get(timeout=10)  # the other worker has looked for messages since
    os.kill(child, signal.SIGCONT)
    each_ran_once(path, [0], [result])
    assert ending.process.wait(10) == 0
    sample.add.delay(1, 2).get(timeout=10)
    each_ran_once(path, [0], [result])


def test_a_task_that_ended_before_the_main_process_knew_does_not_run_again(system: System, path: Path) -> None:
    """The result is stored by the child; SIGTERM comes first."""
    ending = start(system, lease=LONG_LEASE)
    (result,) = enter(path, 0.5, 0)
    wait_for_attempt(path)
    ending.process.send_signal(signal.SIGSTOP)
    result.get(timeout=10)
    ending.process.terminate()
    ending.process.send_signal(signal.SIGCONT)
    assert ending.process.wait(10) == 0
    assert system.client.llen("cpu") == 0


@pytest.mark.parametrize("round_number", range(4))
def test_a_task_that_ended_as_its_worker_was_asked_to_end_does_not_run_again(
    system: System, path: Path, round_number: int
) -> None:
    """Celery puts the acknowledgement off until its loop's next turn, of which there may be none."""
    ending = start(system, lease=LONG_LEASE)
    (result,) = enter(path, 0.3, round_number)
    result.get(timeout=10)
    assert ending.stop() == 0
    assert system.client.llen("cpu") == 0


def test_what_a_broken_connection_has_swallowed_goes_back_when_the_worker_ends(system: System, path: Path) -> None:
    """The broker has handed it out; the worker, asked to end, does not connect again to hear of it."""
    worker = start(system, lease=LONG_LEASE)
    work.enter.apply_async((0, str(path), 0.0), queue="elsewhere")
    message = system.client.rpop("elsewhere")
    (lease,) = system.client.zrange("agentlink:leases", 0, -1)
    system.client.hset(f"agentlink:inflight:{lease}", "7", f"cpu\0{message}")
    assert worker.stop() == 0
    assert system.client.lrange("cpu", 0, -1) == [message]


def test_a_reservation_for_later_is_given_back_too(system: System, path: Path) -> None:
    """A plain Celery's task for later is held by the worker that takes it."""
    holding = start(system, lease=LONG_LEASE)
    _send_for_later(system, path)
    wait_until(lambda: system.in_flight() == 1, what="the message in hand")
    start(system, lease=LONG_LEASE)
    begun_at = time.monotonic()
    assert holding.stop() == 0
    assert wait_for_attempt(path, timeout_s=20).started_at > begun_at


def _send_for_later(system: System, path: Path) -> Any:
    code = f"""
from celery import Celery
app = Celery(broker={system.settings.url!r})
app.send_task("tests.chaos.work.enter", (0, {str(path)!r}, 0.0), queue="cpu", countdown=8)
"""
    assert system.python(code).returncode == 0
