"""The guard in real workers: what a worker under memory pressure does, and that it answers all the while."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.integration import sample
from tests.integration.system import REPOSITORY, System, Worker
from tests.waiting import wait_until

PAUSED = "takes no new tasks: memory of this worker's processes"
RESUMED = "takes tasks again after"
#: No limit for memory may be less.
LEAST_LIMIT_BYTES = 100_000_000
#: A worker and its broker take 80 to 130 MB here.
LIMITS = {"memory": "500MB", "memory_soft": "50%", "memory_resume": "40%", "memory_free": "0"}


def inspect(system: System, command: str, **settings: str) -> Any:
    """What the one worker answers to `celery -A tasks inspect`; None if it doesn't."""
    return remote(system, "inspect", command, **settings)


def remote(system: System, kind: str, *command: str, **settings: str) -> Any:
    answer = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tasks", kind, "--timeout", "2", "--json", *command],
        cwd=REPOSITORY, env=system.environment(**settings), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    if answer.returncode != 0:
        return None
    answers = json.loads(answer.stdout)
    return (answers[0] if isinstance(answers, list) else answers)["worker0@test"]


@contextmanager
def pressure(system: System, worker: Worker) -> Iterator[None]:
    """The limit falls to where what is used lies between soft and hard; afterwards it is as it was."""
    used_bytes = inspect(system, "guard")["resources"]["memory"]["value"]
    remote(system, "control", "guard_limits", f"memory={max(LEAST_LIMIT_BYTES, int(used_bytes / 0.7))}")
    worker.wait_for_log(PAUSED, timeout_s=5)
    yield
    remote(system, "control", "guard_limits")


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_over_its_soft_limit_takes_nothing_more_until_there_is_room(system: System, pool: str) -> None:
    """Running tasks go on, `inspect` is answered, and it goes on within two seconds after."""
    worker = system.start_worker(pool=pool, **LIMITS)
    release, started, ledger = system.folder / "release", system.folder / "started", system.folder / "ledger"
    running = sample.wait_for_file.delay(str(release), started=str(started))
    wait_until(started.exists, what=f"the running task:\n{worker.log[-3000:]}")
    with pressure(system, worker):
        sample.append_line.delay(str(ledger), "waited")
        assert inspect(system, "ping") == {"ok": "pong"}
        status = inspect(system, "guard")
        assert status["state"] == "paused"
        memory = status["resources"]["memory"]
        assert (memory["level"], status["reason"]) == ("pause", memory["reason"])
        assert 0.5 < memory["fraction"] < 0.95
        # Both answers came seconds after the message; it is in its queue, not in the worker, and free for another one.
        assert (system.client.llen("cpu"), system.in_flight()) == (1, 1), worker.log[-2500:]
        assert not ledger.exists(), worker.log
        release.touch()
        assert running.get(timeout=10) == 0
    wait_until(ledger.exists, what="the task that waited", timeout_s=2)
    worker.wait_for_log(RESUMED)
    assert worker.log.count(PAUSED) == 1


def test_what_a_worker_had_taken_and_not_started_goes_back_to_its_queue(system: System) -> None:
    """So that another one can run it; celery's own pause starts what was prefetched."""
    worker = system.start_worker(concurrency=1, **LIMITS)
    release, started, ledger = system.folder / "release", system.folder / "started", system.folder / "ledger"
    for _ in range(2):  # the second is taken while the first, which does not fit beside it, runs
        sample.wait_for_file.delay(str(release), started=str(started))
    wait_until(lambda: system.in_flight() == 1, what="the running task")
    with pressure(system, worker):
        sample.append_line.delay(str(ledger), "waited")
        other = system.start_worker(guard="0")  # whose guard would follow the same orders
        wait_until(ledger.exists, what="the task that another worker runs")
        assert "append_line" not in worker.log.split(PAUSED)[1]
        assert "append_line" in other.log
        release.touch()


def test_a_pause_survives_a_restart_of_the_broker(system: System) -> None:
    """A new connection has a new channel; the valve is put into that one as well."""
    worker = system.start_worker(**LIMITS)
    ledger = system.folder / "ledger"
    assert remote(system, "control", "guard_pause", "for lunch")["state"] == "paused"
    system.restart_broker()
    worker.wait_for_log("Connected to", times=2)
    wait_until(lambda: inspect(system, "ping"), what="the worker's answer after it has reconnected", timeout_s=30)
    sample.append_line.delay(str(ledger), "waited")

    assert inspect(system, "guard")["reason"] == "paused by hand: for lunch"
    assert system.client.llen("cpu") == 1
    assert not ledger.exists()

    remote(system, "control", "guard_resume")
    wait_until(ledger.exists, what="the task that waited")


def test_a_pause_by_hand_reaches_workers_that_start_later_and_ends_by_itself(system: System) -> None:
    """It is kept in the broker."""
    system.start_worker()
    remote(system, "control", "guard_pause", "for lunch", "20s")
    system.workers[0].stop()
    system.workers.clear()
    worker = system.start_worker()
    worker.wait_for_log("takes no new tasks: paused by hand: for lunch")
    result = sample.add.delay(1, 1)
    assert result.get(timeout=25) == 2
    assert "takes tasks again after" in worker.log


def test_limits_can_be_changed_on_a_running_worker(system: System) -> None:
    worker = system.start_worker(**LIMITS)
    refused = remote(system, "control", "guard_limits", "memory=much")
    assert "want a size like 8GB or 512MiB, got 'much'" in refused["error"]
    answer = remote(system, "control", "guard_limits", "memory=100MB", "cpu=50%")
    assert "ok" in answer, answer
    worker.wait_for_log(PAUSED)
    status = inspect(system, "guard")
    assert (status["resources"]["memory"]["limit"], status["resources"]["cpu"]["limit"]) == (100_000_000, 0.5)
    remote(system, "control", "guard_limits")
    worker.wait_for_log(RESUMED)
    assert inspect(system, "guard")["resources"]["memory"]["limit"] == 500_000_000


def test_a_worker_takes_nothing_on_a_machine_that_is_short_of_memory(system: System) -> None:
    """What the machine must keep counts whoever uses it, from the first message on."""
    worker = system.start_worker(memory_free="1000TB")
    result = sample.add.delay(1, 1)
    assert "memory available on this machine" in inspect(system, "guard")["reason"]
    assert system.client.llen("cpu") == 1
    assert not result.ready()
    assert "that must stay free" in worker.log


def test_a_dry_run_says_what_it_would_do_and_does_nothing(system: System) -> None:
    worker = system.start_worker(memory_free="1000TB", guard_dry_run="1")
    worker.wait_for_log("would take no new tasks: memory available on this machine")
    assert sample.add.delay(1, 1).get(timeout=10) == 2
    assert inspect(system, "guard")["dry_run"]


def test_without_the_guard_a_worker_is_plain_celery(system: System) -> None:
    """`AGENTLINK_GUARD=0`: nothing watches, and `inspect guard` says so."""
    worker = system.start_worker(guard="0", memory_free="1000TB", **{k: v for k, v in LIMITS.items() if k == "memory"})
    assert inspect(system, "guard", guard="0") == {"state": "off"}
    assert sample.add.delay(1, 1).get(timeout=10) == 2
    assert "takes no new tasks" not in worker.log
