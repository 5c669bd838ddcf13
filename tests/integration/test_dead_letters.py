"""A task whose process dies runs again in another; one that kills every process it gets is a dead letter."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery.exceptions import TimeLimitExceeded

from agentlink.broker import dead_letters
from tasks.errors import ProcessDied
from tests.integration import sample, troubled
from tests.integration.system import System
from tests.waiting import wait_until
from workflows import RunState, StepState


def test_a_task_whose_process_was_killed_runs_again_in_another(system: System) -> None:
    """And the second attempt is counted."""
    system.start_worker(imports=troubled.IMPORTS)
    run = troubled.dies_once.delay(str(system.folder / "died"))
    assert run.get(timeout=20) == "s u r v i v e d"
    assert [step.attempt for step in run.steps()] == [2, 1]
    assert dead_letters.count(system.client) == 0


def test_a_poison_task_is_a_dead_letter_after_its_last_attempt(system: System) -> None:
    """The other tasks of its worker go on; whoever waits for it gets to know why."""
    worker = system.start_worker(imports=troubled.IMPORTS)
    others = [sample.add.delay(n, n) for n in range(20)]
    poison = sample.die.delay(str(system.folder / "cure"))
    others += [sample.add.delay(n, n) for n in range(20, 40)]
    with pytest.raises(ProcessDied) as died:
        poison.get(timeout=20)
    assert died.value.attempts == sample.die.max_attempts == 3
    assert [other.get(timeout=20) for other in others] == [2 * n for n in range(40)]
    (letter,) = dead_letters.find(system.client)
    assert (letter.id, letter.task, letter.queue, letter.attempts) == (poison.id, sample.die.name, "cpu", 3)
    assert letter.run_id is None
    assert "exitcode 137" in letter.reason
    assert worker.process.poll() is None
    wait_until(lambda: system.in_flight() == 0, what="the last acknowledgement")


def test_a_dead_letter_sent_again_completes_its_run(system: System) -> None:
    """It was one of a chord's header: the chord waits for it."""
    system.start_worker(imports=troubled.IMPORTS)
    cure = system.folder / "cure"
    run = sample.deadly.delay(str(cure))
    wait_until(lambda: run.progress.ended, what="the run's end", timeout_s=20)
    assert run.progress.state is RunState.FAILED
    (letter,) = dead_letters.find(system.client)
    assert letter.run_id == run.id
    cure.touch()
    assert dead_letters.send_again(system.client, [letter, letter]) == 1
    wait_until(lambda: run.progress.ended, what="the run's end")
    assert run.progress.state is RunState.SUCCEEDED
    assert type(run)(run.id).get(timeout=10) == "survived survived"
    assert {step.state for step in run.steps()} == {StepState.SUCCEEDED}
    assert dead_letters.count(system.client) == 0


def test_a_dead_letter_sent_again_has_all_its_attempts(system: System) -> None:
    system.start_worker(imports=troubled.IMPORTS)
    poison = sample.die.delay(str(system.folder / "cure"))
    first = wait_until(lambda: list(dead_letters.find(system.client)), what="the dead letter", timeout_s=20)
    dead_letters.send_again(system.client, first)
    second = wait_until(lambda: list(dead_letters.find(system.client)), what="the second burial", timeout_s=20)
    assert [(one.id, one.attempts) for one in [*first, *second]] == [(poison.id, 3), (poison.id, 3)]


def test_a_task_that_kills_its_worker_is_buried_by_the_fourth_without_running(system: System) -> None:
    ledger, cure = system.folder / "ledger", system.folder / "cure"
    deadly = troubled.kill_worker.delay(str(ledger), str(cure))
    for killed in range(1, 4):
        worker = system.start_worker(lease="1s", imports=troubled.IMPORTS)
        wait_until(lambda worker=worker: worker.process.poll() is not None, what="the worker's end", timeout_s=20)
        assert _lines(ledger) == killed
    worker = system.start_worker(lease="1s", imports=troubled.IMPORTS)
    wait_until(lambda: dead_letters.count(system.client) == 1, what="the dead letter", timeout_s=20)
    with pytest.raises(ProcessDied):
        deadly.get(timeout=10)
    assert sample.add.delay(1, 2).get(timeout=10) == 3
    assert worker.process.poll() is None
    assert _lines(ledger) == 3
    cure.touch()
    assert dead_letters.send_again(system.client, dead_letters.find(system.client)) == 1
    wait_until(lambda: _lines(ledger) == 4, what="the fourth attempt")


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_a_task_that_runs_out_of_memory_fails_alone(system: System) -> None:
    """Stock Celery ends the whole worker."""
    worker = system.start_worker(imports=troubled.IMPORTS)
    with pytest.raises(MemoryError):
        troubled.use_up_memory.delay().get(timeout=20)
    assert sample.add.delay(1, 2).get(timeout=10) == 3
    assert worker.process.poll() is None
    assert dead_letters.count(system.client) == 0


def test_a_time_limits_kill_is_no_dead_letter(system: System) -> None:
    """The task has had its time: it fails, and does not run again."""
    system.start_worker(imports=troubled.IMPORTS)
    with pytest.raises(TimeLimitExceeded):
        sample.wait_for_a_second.delay().get(timeout=20)
    assert dead_letters.count(system.client) == 0
    wait_until(lambda: system.in_flight() == 0, what="the last acknowledgement")
