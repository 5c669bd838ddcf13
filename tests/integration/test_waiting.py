"""Steps that wait for a signal: nothing is held meanwhile, nothing is lost, nothing is handed out twice."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from agentlink.broker.errors import BrokerUnavailable
from tests.integration import sample, waiting_steps
from tests.integration.system import System
from tests.waiting import wait_until
from workflows import RunEnded, RunState, RunUnknown, SignalTimedOut, StepState, WorkflowRun, signals, store, wait_for

DELAYED = "agentlink:delayed:cpu"
#: Runs are kept for twice as long while they go on, what chords have gathered for as long.
SHORT = {"keep_results": "4s", "soft_time_limit": "1s", "hard_time_limit": "2s"}


def start(system: System, **options: Any) -> Any:
    return system.start_worker(imports=waiting_steps.IMPORTS, **options)


def wait_until_it_waits(run: WorkflowRun, count: int = 1) -> None:
    wait_until(lambda: len(run.waiting()) == count, what=f"{count} steps of {run.id} that wait", timeout_s=20)


def wait_until_nothing_is_in_flight(system: System) -> None:
    """What waits is in nobody's hand at once; that the step before has ended is told a moment later."""
    wait_until(lambda: system.in_flight() == 0, what="the end of what is in flight")


def notes(path: Path) -> list[str]:
    return path.read_text().splitlines()


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_run_goes_on_with_what_a_signal_brings(system: System, path: Path, pool: str) -> None:
    start(system, pool=pool)
    run = waiting_steps.asks.delay(str(path))
    wait_until_it_waits(run)
    [wait] = run.waiting()
    assert (wait.name, wait.prompt, wait.until, wait.run_id) == ("approval", "Send this mail?", None, run.id)
    assert abs(wait.since - time.time()) < 20
    step = next(step for step in run.steps() if step.id == wait.step_id)
    assert (step.state, step.waiting_for, step.attempt, step.worker) == (StepState.WAITING, "approval", 1, None)
    wait_until_nothing_is_in_flight(system)
    assert run.progress.state is RunState.RUNNING
    assert run.signal("approval", {"yes": [1, None, "ü"]})
    assert run.get(timeout=20) == {"yes": [1, None, "ü"]}
    assert notes(path) == [repr({"yes": [1, None, "ü"]})]
    assert run.waiting() == signals.all_waits(system.client) == []
    assert {(step.state, step.attempt, step.waiting_for) for step in run.steps()} == {(StepState.SUCCEEDED, 1, None)}
    assert system.client.exists(DELAYED, signals.INDEX_KEY, signals.waits_key(run.id), signals.parked_key(run.id)) == 0


def test_steps_that_wait_hold_no_slot(system: System) -> None:
    start(system, concurrency=2)
    runs = [waiting_steps.asks.delay() for _ in range(10)]
    for run in runs:
        wait_until_it_waits(run)
    wait_until_nothing_is_in_flight(system)
    assert sample.add.delay(1, 2).get(timeout=5) == 3
    assert len(signals.all_waits(system.client)) == 10
    for number, run in enumerate(runs):
        assert run.signal("approval", number)
    assert [run.get(timeout=20) for run in runs] == list(range(10))


def test_a_signal_that_comes_first_is_kept(system: System) -> None:
    run = waiting_steps.asks.delay()
    assert run.signal("approval", "early") is False
    assert run.signal("other", "never wanted") is False
    start(system)
    assert run.get(timeout=20) == "early"


def test_the_last_step_of_a_run_may_wait(system: System) -> None:
    start(system)
    run = waiting_steps.asks_last.delay()
    wait_until_it_waits(run)
    assert run.signal("approval")
    assert run.get(timeout=20) is None
    assert run.progress.state is RunState.SUCCEEDED


def test_when_its_time_is_over_something_else_is_done_instead(system: System) -> None:
    start(system)
    run = waiting_steps.asks_for_a_while.delay("2s", instead=True)
    wait_until_it_waits(run)
    [wait] = run.waiting()
    assert wait.until is not None
    assert abs(wait.until - wait.since - 2) < 0.01
    assert run.get(timeout=20) == 22
    assert run.waiting() == []
    assert run.progress.steps_done == run.progress.steps_total


def test_without_that_it_fails_with_an_error_that_says_so(system: System) -> None:
    start(system)
    run = waiting_steps.asks_for_a_while.delay("500ms", instead=False)
    with pytest.raises(SignalTimedOut, match="nobody sent the signal 'approval' within 500 ms"):
        run.get(timeout=20)
    assert run.progress.state is RunState.FAILED
    with pytest.raises(RunEnded, match="has ended"):
        run.signal("approval")
    assert run.waiting() == []


def test_a_signal_in_time_keeps_it_from_timing_out(system: System) -> None:
    start(system)
    run = waiting_steps.asks_for_a_while.delay("60s", instead=True)
    wait_until_it_waits(run)
    assert run.signal("approval", "in time")
    assert run.get(timeout=20) == "in time"


def test_a_timer_waits_for_its_time_alone(system: System) -> None:
    start(system)
    called = time.time()
    run = waiting_steps.sleeps.delay("2s")
    wait_until_it_waits(run)
    assert run.waiting()[0].name is None
    assert run.get(timeout=20) == 3
    assert 2 < time.time() - called < 10


def test_members_of_a_chord_may_wait(system: System) -> None:
    start(system)
    run = waiting_steps.asks_in_a_chord.delay()
    wait_until_it_waits(run, 2)
    assert run.signal("late number", 100)
    assert run.signal("number", 10)
    assert run.get(timeout=20) == 2 + 10 + 1100 + 1


def test_a_workflow_that_waits_may_be_a_step_of_another(system: System) -> None:
    start(system)
    run = waiting_steps.outer.delay()
    wait_until(lambda: len(signals.all_waits(system.client)) == 1, what="a step that waits", timeout_s=20)
    [wait] = signals.all_waits(system.client)
    assert wait.run_id != run.id
    assert WorkflowRun(wait.run_id).signal("number", 5)
    assert run.get(timeout=20) == 8


def test_two_that_wait_get_a_signal_each(system: System) -> None:
    start(system)
    run = waiting_steps.asks_twice_at_once.delay()
    wait_until_it_waits(run, 2)
    first, second = run.waiting()
    assert run.signal("word", "one")
    wait_until(lambda: [wait.step_id for wait in run.waiting()] == [second.step_id], what="the first to go on")
    assert run.signal("word", "two")
    assert sorted(run.get(timeout=20).split()) == ["one", "two"]
    assert run.get().split().index("one") == [step.id for step in run.steps()].index(first.step_id)


def test_a_signal_for_all_wakes_all_that_wait(system: System) -> None:
    start(system)
    run = waiting_steps.asks_twice_at_once.delay()
    wait_until_it_waits(run, 2)
    assert run.signal("word", "same", to_all=True)
    assert run.get(timeout=20) == "same same"


def test_outside_a_run_nothing_can_be_waited_for(system: System) -> None:
    start(system)
    with pytest.raises(RunUnknown):
        wait_for("approval").delay().get(timeout=20)


def test_a_full_broker_takes_no_signal(system: System) -> None:
    start(system)
    run = waiting_steps.asks.delay()
    wait_until_it_waits(run)
    most_bytes = system.client.config_get("maxmemory")["maxmemory"]
    system.client.config_set("maxmemory", 1)
    try:
        with pytest.raises(BrokerUnavailable, match="it is full"):
            run.signal("approval", "refused")
    finally:
        system.client.config_set("maxmemory", most_bytes)
    assert len(run.waiting()) == 1
    assert run.signal("approval", "taken")
    assert run.get(timeout=20) == "taken"


def test_runs_nobody_knows_are_sent_nothing(system: System) -> None:
    with pytest.raises(RunUnknown, match="no run 'nothing' is known"):
        WorkflowRun("nothing").signal("approval")
    assert not list(system.client.scan_iter("*nothing*"))


def test_a_broker_that_hangs_does_not_take_a_signal_later(system: System) -> None:
    start(system)
    run = waiting_steps.asks.delay()
    wait_until_it_waits(run)
    called = time.monotonic()
    with system.frozen_broker(), pytest.raises(BrokerUnavailable):
        run.signal("approval", "refused")
    assert time.monotonic() - called < 10
    assert sample.add.delay(1, 2).get(timeout=20) == 3
    assert len(run.waiting()) == 1
    assert system.client.exists(signals.signals_key(run.id)) == 0
    assert run.signal("approval", "taken")
    assert run.get(timeout=20) == "taken"


def test_a_signal_finds_a_broker_that_was_restarted(system: System) -> None:
    start(system)
    run = waiting_steps.asks.delay()
    wait_until_it_waits(run)
    assert run.signal("other") is False
    system.restart_broker()
    assert run.signal("approval", "taken")
    assert run.get(timeout=20) == "taken"


def test_what_waits_in_a_run_that_has_failed_goes_with_it(system: System) -> None:
    """It is asked for no more, and its message goes: one that is resumed has another."""
    start(system, **SHORT)
    run = waiting_steps.fails_beside.delay("no good")
    with pytest.raises(Exception, match="no good"):
        run.get(timeout=20)
    with pytest.raises((RunEnded, RunUnknown)):
        run.signal("approval")
    wait_until(lambda: not system.client.exists(DELAYED, signals.INDEX_KEY), what="it to be forgotten", timeout_s=20)
    assert run.waiting() == signals.all_waits(system.client) == []
    wait_until(lambda: not list(system.client.scan_iter(f"{store.run_key(run.id)}*")), what="the run to be forgotten")


def test_a_step_may_decide_to_wait(system: System) -> None:
    start(system)
    run = waiting_steps.decides.delay()
    wait_until_it_waits(run)
    assert run.signal("approval", 4)
    assert run.get(timeout=20) == 5


def test_a_step_may_send_a_signal(system: System) -> None:
    start(system)
    run = waiting_steps.asks.delay()
    wait_until_it_waits(run)
    assert waiting_steps.approve.delay(run.id).get(timeout=20) is True
    assert run.get(timeout=20) == "from a task"


def test_waiting_survives_worker_and_broker(system: System, path: Path) -> None:
    worker = start(system)
    run = waiting_steps.asks.delay(str(path))
    wait_until_it_waits(run)
    [before] = run.waiting()
    worker.kill()
    system.restart_broker()
    assert run.waiting() == [before]
    assert run.signal("approval", "after")
    system.restart_broker()
    start(system)
    assert run.get(timeout=30) == "after"
    assert notes(path) == ["'after'"]


@pytest.mark.parametrize("whole", ["", "1"])
def test_killed_when_it_is_told_it_is_told_the_same_again(system: System, path: Path, whole: str) -> None:
    dies = system.folder / "dies"
    environment = {"TEST_DIES_WHEN_TOLD": str(dies), "TEST_DIES_WHOLE": whole}
    before = ["env", *(f"{name}={value}" for name, value in environment.items())]
    start(system, before=before, concurrency=1, lease="1s")
    run = waiting_steps.asks.delay(str(path))
    wait_until_it_waits(run)
    dies.touch()
    assert run.signal("approval", "once")
    assert run.signal("approval", "for the next") is False
    wait_until(lambda: not dies.exists(), what="its death")
    if whole:
        start(system)
    assert run.get(timeout=30) == "once"
    assert notes(path) == ["'once'"]
    assert store.read_run(system.client, run.id).state is RunState.SUCCEEDED


@pytest.mark.parametrize("whole", ["", "1"])
def test_killed_when_it_was_put_aside_it_waits_all_the_same(system: System, path: Path, whole: str) -> None:
    dies = system.folder / "dies"
    dies.touch()
    environment = {"TEST_DIES_WHEN_TOLD": str(dies), "TEST_DIES_WHOLE": whole, "TEST_DIES_AT": "parked"}
    before = ["env", *(f"{name}={value}" for name, value in environment.items())]
    start(system, before=before, concurrency=1, lease="1s")
    run = waiting_steps.asks.delay(str(path))
    wait_until_it_waits(run)
    wait_until(lambda: not dies.exists(), what="its death")
    if whole:
        start(system)
    assert sample.add.delay(1, 2).get(timeout=30) == 3
    assert (system.client.zcard(DELAYED), len(run.waiting())) == (1, 1)
    assert run.signal("approval", "word")
    assert run.get(timeout=30) == "word"
    assert notes(path) == ["'word'"]


@pytest.mark.parametrize("at", ["timed out", "replaced"])
def test_killed_when_its_time_is_over_it_takes_the_same_branch_once(system: System, path: Path, at: str) -> None:
    dies = system.folder / "dies"
    before = ["env", f"TEST_DIES_WHEN_TOLD={dies}", f"TEST_DIES_AT={at}"]
    start(system, before=before, concurrency=1)
    run = waiting_steps.gives_up.delay(str(path))
    wait_until_it_waits(run)
    dies.touch()
    assert run.get(timeout=30) == 2
    assert not dies.exists()
    wait_until(lambda: system.in_flight() == 0, what="everything to be done")
    assert notes(path) == ["'nobody there'", "2"]
    assert run.progress.steps_done == run.progress.steps_total


def test_a_run_that_waits_outlives_what_is_kept(system: System) -> None:
    """Of all that is kept, nothing would be there any more when it goes on."""
    start(system, **SHORT)
    call = "from tests.integration import waiting_steps\nprint(waiting_steps.asks_in_a_chord.delay().id)"
    called = system.python(call, **SHORT)
    run = WorkflowRun(called.stdout.strip())
    wait_until_it_waits(run, 2)
    assert run.signal("number", 10)
    ended = time.monotonic() + 10
    wait_until(lambda: time.monotonic() > ended, what="that to have been over")
    [wait] = run.waiting()
    assert wait.name == "late number"
    assert run.signal("late number", 100)
    assert run.get(timeout=20) == 2 + 10 + 1100 + 1


def test_each_run_gets_its_own_word_whatever_is_killed(system: System) -> None:
    """Processes of the pool, and then a whole worker, while steps begin to wait and while they are signalled."""
    worker = start(system, concurrency=2, lease="1s")
    runs = [waiting_steps.asks.delay() for _ in range(40)]

    def kill_one() -> None:
        for pid in worker.children()[:1]:
            os.kill(pid, signal.SIGKILL)

    for least in (5, 15, 25):
        wait_until(lambda at=least: len(signals.all_waits(system.client)) >= at, what="some to wait", timeout_s=20)
        kill_one()
    wait_until(lambda: len(signals.all_waits(system.client)) == len(runs), what="all to wait", timeout_s=30)
    for number, run in enumerate(runs):
        assert run.signal("approval", number)
        if number in (5, 15, 25):
            kill_one()
        if number == 30:
            worker.kill()
    start(system, concurrency=2, lease="1s")
    assert [run.get(timeout=30) for run in runs] == list(range(len(runs)))
    wait_until(lambda: system.in_flight() == 0, what="nothing in flight")
    assert system.client.exists(DELAYED, signals.INDEX_KEY) == 0
