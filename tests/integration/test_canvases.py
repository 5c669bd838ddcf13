"""Whatever shape a workflow's canvas has, its run ends, and its id resolves to what that canvas gives.

Also when a process is killed on the way: what had finished does not run again.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks import app
from tests.integration import canvases, sample
from tests.integration.canvases import SHAPES, SLOW, shaped, spots_of
from tests.integration.conftest import running_system
from tests.integration.system import System
from tests.waiting import wait_until
from workflows import RunState, StepState, WorkflowRun
from workflows.store import run_key

#: The dice of the kills; the environment may set it.
SEED = int(os.environ.get("CANVASES_SEED") or random.randrange(1_000_000))
LEASE = "1s"


def begun(folder: Path) -> Counter[str]:
    """How often each task has begun, by its spot and its id."""
    lines = ((spot.name, line) for spot in folder.glob("*[0-9]") for line in spot.read_text().splitlines())
    return Counter(f"{name} {line.split()[1]}" for name, line in lines if line.startswith("begin"))


def all_steps(run: WorkflowRun) -> Iterator[Any]:
    """Of a run and the runs that are steps of it."""
    for step in run.steps():
        yield step
        inner = WorkflowRun(step.id)
        if step.id != run.id and inner.backend.client.exists(run_key(step.id)):
            yield from all_steps(inner)


def assert_complete(run: WorkflowRun, shape: str, folder: Path) -> None:
    """Each step has succeeded, and whatever has run is a step."""
    expected, steps = SHAPES[shape][1:]
    assert run.result == expected
    wait_until(lambda: len(begun(folder)) >= len(spots_of(shape)), what="what was linked")
    wait_until(lambda: run.progress.steps_done == steps, what=f"{steps} steps: {run.steps()}")
    progress = run.progress
    assert (progress.state, progress.steps_done, progress.steps_total) == (RunState.SUCCEEDED, steps, steps)
    every = list(all_steps(run))
    assert {step.state for step in every} == {StepState.SUCCEEDED}
    assert {key.split()[1] for key in begun(folder)} <= {step.id for step in every}


@pytest.fixture(scope="class")
def peaceful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("system")) as system:
        system.start_worker(imports=canvases.IMPORTS)
        yield system


@pytest.fixture(scope="class")
def raging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("system")) as system:
        for _ in range(2):
            system.start_worker(imports=canvases.IMPORTS, lease=LEASE)
        yield system


@pytest.mark.usefixtures("peaceful")
class TestInPeace:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_a_run_ends_with_what_its_canvas_gives(self, shape: str, tmp_path: Path) -> None:
        run = shaped.delay(shape, str(tmp_path))
        assert run.get(timeout=20) == SHAPES[shape][1]
        assert_complete(run, shape, tmp_path)
        retried = 2 if shape.startswith("retried") else 1
        assert max(begun(tmp_path).values(), default=1) == retried

    def test_what_a_step_has_replaced_itself_by_runs_once_though_it_dies_of_it(self, tmp_path: Path) -> None:
        run = canvases.dies_as_it_is_replaced.delay(str(tmp_path))
        assert run.get(timeout=20) == 5
        assert sorted(begun(tmp_path).values()) == [1, 1, 1, 1, 1, 2]
        assert (run.progress.steps_done, run.progress.steps_total) == (5, 5)

    def test_a_signature_may_stand_in_several_places(self) -> None:
        assert canvases.same_signatures.delay().get(timeout=20) == 7

    def test_a_workflow_as_a_step_is_a_run_of_its_own(self) -> None:
        run = canvases.starts_with_a_run.delay()
        assert run.get(timeout=20) == 4
        inner = WorkflowRun(run.steps()[0].id)
        assert inner.record().parent_id == run.id
        assert inner.progress.steps_done == inner.progress.steps_total == 2

    def test_a_revoked_step_cancels_its_run(self, peaceful: System) -> None:
        started = peaceful.folder / "started"
        run = sample.waits.delay(str(peaceful.folder / "never"), str(started))
        wait_until(started.exists, what="the step's start")
        app.control.revoke(run.steps()[0].id, terminate=True)
        wait_until(lambda: run.progress.ended, what="the run's end")
        assert run.progress.state is RunState.CANCELLED

    def test_a_plain_clients_call_is_a_run_too(self) -> None:
        """Flower, or anybody with Celery and the task's name."""
        result = app.send_task(sample.sums.name, (2,))
        assert result.get(timeout=20) == 1003
        assert WorkflowRun(result.id).progress.state is RunState.SUCCEEDED

    def test_an_id_of_ones_own_need_not_be_a_uuid(self) -> None:
        assert sample.sums.apply_async((2,), task_id="my run").get(timeout=20) == 1003

    def test_an_empty_chain_is_refused_in_words(self) -> None:
        run = canvases.empty_chain.delay()
        with pytest.raises(Exception, match="an empty chain has no step that could answer"):
            run.get(timeout=20)

    def test_called_in_this_process_a_workflow_needs_no_broker(self) -> None:
        assert sample.sums(2) == 1003
        assert sample.sums.apply((2,)).get() == 1003


class TestWithAKill:
    @pytest.mark.parametrize("shape", [shape for shape in SHAPES if spots_of(shape)])
    def test_what_had_finished_does_not_run_again(self, shape: str, raging: System, tmp_path: Path) -> None:
        dice = random.Random(f"{SEED} {shape}")
        print(f"CANVASES_SEED={SEED}")
        (tmp_path / SLOW).touch()
        spots = len(spots_of(shape))
        run = shaped.delay(shape, str(tmp_path))
        after = dice.randint(1, spots)
        wait_until(lambda: len(begun(tmp_path)) >= min(after, spots), what=f"the beginning of {after} of {shape}")
        finished = {step.id for step in all_steps(run) if step.state is StepState.SUCCEEDED}
        before = begun(tmp_path)
        self._kill_one(raging, dice)
        assert run.get(timeout=20) == SHAPES[shape][1]
        assert_complete(run, shape, tmp_path)
        again = {key for key, times in begun(tmp_path).items() if times > before[key] > 0}
        assert {key for key in again if key.split()[1] in finished} == set()

    @staticmethod
    def _kill_one(system: System, dice: random.Random) -> None:
        """A process of a pool, or a whole worker, which another takes the place of."""
        alive = [worker for worker in system.workers if worker.process.poll() is None]
        victim = dice.choice(alive)
        children = victim.children()
        if children and dice.random() < 2 / 3:
            os.kill(dice.choice(children), signal.SIGKILL)
        else:
            victim.kill()
            system.start_worker(imports=canvases.IMPORTS, lease=LEASE)
