"""What a step adds to its chord belongs to the run, is waited for, and is there once, whoever dies."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord

from agentlink.broker.chords import CHORD_PREFIX, PENDING_KEY, ChordWatch
from tasks import app, task
from tests.integration.conftest import running_system
from tests.integration.sample import add, total, wait_for_file
from tests.integration.system import System
from tests.waiting import wait_until
from workflows import RunState, WorkflowRun, workflow
from workflows.states import StepState

#: By when a chord that was sent now has been looked at.
LATER_S = 60


@task
def hundred(ledger: str, go: str) -> int:
    with Path(ledger).open("a") as file:
        file.write("x")
    wait_for_file.run(go)
    return 100


@task(bind=True)
def adds_some(self: Any, ledger: str, go: str, died: str) -> int:
    """Adds a task twice and a chord, and dies of it, but only once."""
    for _ in range(2):
        self.add_to_chord(hundred.si(ledger, go))
    self.add_to_chord(chord([add.si(1000, 0), add.si(0, 0)], chain(total.s(), add.s(0))))
    if not Path(died).exists():
        Path(died).touch()
        os._exit(137)
    return 1


@task
def total_if_allowed(numbers: list[int], allowed: str | None) -> int:
    if allowed and not Path(allowed).exists():
        raise PermissionError(allowed)
    return sum(numbers)


@workflow
def growing(ledger: str, go: str, died: str, allowed: str | None = None) -> Any:
    """1 + 2 + twice 100 + 1000."""
    return chord([adds_some.si(ledger, go, died), add.si(1, 1)], total_if_allowed.s(allowed))


@pytest.fixture(scope="module")
def growing_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("system")) as system:
        system.start_worker(imports=f"tests.integration.sample,{__name__}", concurrency=4)
        yield system


def _start(system: System, path: Path, dies: bool = False) -> tuple[WorkflowRun, Path]:
    """A run whose own members have ended, while those that were added run; and the file that ends those."""
    go, died = path.with_name("go"), path.with_name("died")
    if not dies:
        died.touch()
    run = growing.delay(str(path), str(go), str(died))
    wait_until(lambda: path.read_text() == "xx", what="both added tasks")
    wait_until(lambda: _succeeded(run) >= 6, what="the end of all but these")
    # Whoever died had sent messages that come again.
    wait_until(lambda: system.client.llen("cpu") == 0 and system.in_flight() == 2, what="the end of all else")
    return run, go


def _succeeded(run: WorkflowRun) -> int:
    return sum(step.state is StepState.SUCCEEDED for step in run.steps())


def _look() -> list[str]:
    """What the watch over chords does a while later."""
    return ChordWatch(app.backend, lambda run_ids: dict.fromkeys(run_ids, True)).look(time.time() + LATER_S)


@pytest.mark.parametrize("dies", [False, True])
def test_they_are_waited_for_and_there_once(dies: bool, growing_system: System, path: Path) -> None:
    run, go = _start(growing_system, path, dies)
    assert _look() == []
    go.touch()
    assert run.get(timeout=20) == 1203
    wait_until(growing_system.is_idle, what="the end of all")
    assert path.read_text() == "xx"
    assert run.progress.state is RunState.SUCCEEDED
    assert {step.state for step in run.steps()} == {StepState.SUCCEEDED}
    # Two members and the body; two tasks; a chord of four.
    assert len(run.steps()) == 9


def test_they_are_found_when_the_counters_get_lost(growing_system: System, path: Path) -> None:
    run, go = _start(growing_system, path)
    client = growing_system.client
    groups: list[Any] = client.zrange(PENDING_KEY, 0, -1)
    (group_id,) = [one for one in groups if client.hget(CHORD_PREFIX + one, "run") == run.id]
    assert client.delete(*(f"celery-taskset-meta-{group_id}{ending}" for ending in (".j", ".s", ".t", ".d", ".c")))
    go.touch()
    wait_until(lambda: _succeeded(run) == 8, what="the end of all but the body")
    assert _look() == [group_id]
    assert run.get(timeout=20) == 1203


def test_a_run_that_is_resumed_has_them_once_more(growing_system: System, path: Path) -> None:
    """The step that has added them has succeeded, and does not run again."""
    go, died = path.with_name("go"), path.with_name("died")
    died.touch()
    run = growing.delay(str(path), str(go), str(died), str(path.with_name("allowed")))
    go.touch()
    with pytest.raises(PermissionError):
        run.get(timeout=20)
    path.with_name("allowed").touch()
    run.resume()
    assert run.get(timeout=20) == 1203
    assert path.read_text() == "xx"


def test_a_cancelled_run_ends_them(growing_system: System, path: Path) -> None:
    run, _ = _start(growing_system, path)
    run.cancel()
    wait_until(growing_system.is_idle, what="the end of all")
    assert run.progress.state is RunState.CANCELLED
    assert [step.state for step in run.steps() if step.name == hundred.name] == [StepState.CANCELLED] * 2
