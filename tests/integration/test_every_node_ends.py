"""A step fails, is killed for good or revoked, at any place of any canvas: all of its run ends, and is told of once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks import app
from tests.integration import canvases
from tests.integration.canvases import SHAPES, assert_all_ended, shaped, spots_of
from tests.integration.conftest import running_system
from tests.integration.sample import note
from tests.integration.system import System
from tests.waiting import wait_until
from workflows import RunState, StepState, WorkflowRun

#: From when a step has met its fate until everything has ended.
WITHIN_S = 5
#: The file that gets a line for each time the failure of a run was told.
TOLD = "told"
#: Nothing waits for what is linked; the run may have succeeded by then.
LINKED_SPOTS = {"linked": 2}
#: Where there are more it is enough to try the first, the last, and one between.
_SPOTS_AT_MOST = 8

SHAPES_WITH_SPOTS = [shape for shape in SHAPES if spots_of(shape)]


def spots_tried(shape: str) -> list[int]:
    spots = [spot for spot in spots_of(shape) if spot != LINKED_SPOTS.get(shape)]
    if len(spots) <= _SPOTS_AT_MOST:
        return spots
    return [spots[0], spots[len(spots) // 2], spots[-1]]


@pytest.fixture(scope="class")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("system")) as system:
        system.start_worker(imports=canvases.IMPORTS, concurrency=3)
        yield system


def _start(shape: str, folder: Path, fate: str) -> dict[int, WorkflowRun]:
    """A run for each spot, at which the task meets that fate."""
    runs = {}
    for spot in spots_tried(shape):
        own = folder / str(spot)
        own.mkdir()
        (own / f"{spot}.fate").write_text(fate)
        runs[spot] = shaped.apply_async((shape, str(own)), link_error=note.si(str(own / TOLD)))
    return runs


def _attempts(folder: Path, spot: int) -> list[str]:
    """The ids of the tasks that have begun at a spot: one for each time."""
    ledger = folder / str(spot) / str(spot)
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    return [line.split()[1] for line in lines if line.startswith("begin")]


def _check(system: System, folder: Path, runs: dict[int, WorkflowRun], state: RunState) -> None:
    deadline = time.monotonic() + WITHIN_S
    for spot, run in runs.items():
        with pytest.raises(Exception, match=r".") as raised:
            run.get(timeout=max(0.1, deadline - time.monotonic()))
        assert not isinstance(raised.value, TimeoutError), f"nothing came of the run that breaks at {spot}"
    wait_until(system.is_idle, what="the end of what had begun", timeout_s=WITHIN_S)
    for spot, run in runs.items():
        assert run.progress.state is state, spot
        assert (folder / str(spot) / TOLD).read_text().count("\n") == 1, spot
        begun = [step for step in run.steps() if step.state in (StepState.RUNNING, StepState.RETRYING)]
        assert begun == [], spot
    for run in runs.values():
        assert_all_ended(run)


@pytest.mark.usefixtures("several")
class TestEveryNodeEnds:
    @pytest.mark.parametrize("shape", SHAPES_WITH_SPOTS)
    def test_after_a_failure(self, shape: str, several: System, tmp_path: Path) -> None:
        runs = _start(shape, tmp_path, "fail")
        wait_until(lambda: all(_attempts(tmp_path, spot) for spot in runs), what="every failure", timeout_s=20)
        _check(several, tmp_path, runs, RunState.FAILED)

    @pytest.mark.parametrize("shape", SHAPES_WITH_SPOTS)
    def test_after_the_death_of_all_attempts(self, shape: str, several: System, tmp_path: Path) -> None:
        runs = _start(shape, tmp_path, "die")
        wait_until(lambda: all(len(_attempts(tmp_path, spot)) > 1 for spot in runs), what="every death", timeout_s=20)
        _check(several, tmp_path, runs, RunState.FAILED)

    @pytest.mark.parametrize("shape", SHAPES_WITH_SPOTS)
    def test_after_the_step_was_revoked(self, shape: str, several: System, tmp_path: Path) -> None:
        runs = _start(shape, tmp_path, "wait")
        waiting = set(runs)
        while waiting:
            spot = wait_until(
                lambda: next((spot for spot in waiting if _attempts(tmp_path, spot)), None), what=f"one of {waiting}"
            )
            app.control.revoke(_attempts(tmp_path, spot)[0], terminate=True, signal="SIGKILL")
            waiting.remove(spot)
        _check(several, tmp_path, runs, RunState.CANCELLED)
