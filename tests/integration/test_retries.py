"""A task that fails is tried again as it says; until then it waits in the broker, whatever becomes of the worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlink.broker import dead_letters
from tasks.errors import ProcessDied
from tests.integration import troubled
from tests.integration.system import System
from tests.waiting import wait_until
from workflows import RunState, StepState


@pytest.fixture
def ledger(system: System) -> Path:
    """A worker, and where its tasks write down each attempt."""
    system.start_worker(imports=troubled.IMPORTS)
    return system.folder / "ledger"


def _attempts(ledger: Path) -> int:
    return len(ledger.read_text().splitlines()) if ledger.exists() else 0


def test_an_error_of_the_named_kind_is_tried_again_until_it_passes(system: System, ledger: Path) -> None:
    run = troubled.patient.delay(str(ledger), 2)
    assert run.get(timeout=20) == "attempt 3"
    assert (run.progress.state, [step.attempt for step in run.steps()]) == (RunState.SUCCEEDED, [3, 1])
    begun = [float(line) for line in ledger.read_text().splitlines()]
    assert begun[1] - begun[0] < 1 + 0.5  # the back-off: a random part of 1 s
    assert begun[2] - begun[1] < 2 + 0.5


def test_after_the_last_attempt_the_tasks_own_error_is_its_failure(ledger: Path) -> None:
    run = troubled.patient.delay(str(ledger), 9)
    with pytest.raises(ConnectionError, match="no answer at attempt 3"):
        run.get(timeout=20)
    assert _attempts(ledger) == 3
    failure = run.record().failure
    assert failure is not None
    assert failure["error"] == "ConnectionError: no answer at attempt 3"


def test_a_task_that_retries_itself_fails_with_the_error_at_hand(ledger: Path) -> None:
    """Stock Celery says `MaxRetriesExceededError` here."""
    with pytest.raises(LookupError, match="it"):
        troubled.tries_again.delay(str(ledger), 0).get(timeout=20)


def test_a_retry_waits_in_the_broker_and_survives_it_and_its_worker(system: System, ledger: Path) -> None:
    result = troubled.tries_again.delay(str(ledger), 4)
    wait_until(lambda: system.client.zcard("agentlink:delayed:cpu") == 1, what="the retry in the broker")
    wait_until(lambda: system.in_flight() == 0, what="nothing in the worker's hands")
    assert result.status == "RETRY"
    system.workers[0].kill()
    system.restart_broker()
    assert system.client.zcard("agentlink:delayed:cpu") == 1
    system.start_worker(imports=troubled.IMPORTS)
    with pytest.raises(LookupError, match="it"):
        result.get(timeout=20)
    begun = [float(line) for line in ledger.read_text().splitlines()]
    assert len(begun) == 2
    assert begun[1] - begun[0] > 4


def test_a_waiting_step_is_shown_as_retrying_with_its_error(system: System, ledger: Path) -> None:
    run = troubled.waits_long.delay(str(ledger))
    wait_until(lambda: system.client.zcard("agentlink:delayed:cpu") == 1, what="the retry in the broker")
    wait_until(lambda: run.steps()[0].state is StepState.RETRYING, what="the step's state")
    step = run.steps()[0]
    assert (step.attempt, step.error) == (1, "KeyError: 'it'")
    system.client.delete("agentlink:delayed:cpu")


def test_a_death_and_errors_add_up(ledger: Path) -> None:
    with pytest.raises(ConnectionError):
        troubled.unreliable_after_death.delay(str(ledger)).get(timeout=30)
    assert _attempts(ledger) == 3


def test_errors_and_deaths_add_up(system: System, ledger: Path) -> None:
    """The last of the attempts ends with a death: a dead letter."""
    with pytest.raises(ProcessDied) as died:
        troubled.unreliable.delay(str(ledger), 1, deaths=2).get(timeout=30)
    assert died.value.attempts == _attempts(ledger) == 3
    (letter,) = dead_letters.find(system.client)
    assert letter.attempts == 3
    dead_letters.drop(system.client, [letter.id])
