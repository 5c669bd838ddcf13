"""A workflow, called from here and run by a real worker."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from celery import group

from tests.integration import sample
from tests.integration.system import System
from tests.waiting import wait_until
from workflows import CallRefused, RunState, StepState, WorkflowRun
from workflows.errors import CanvasUnusable


@pytest.fixture
def _worker(system: System) -> None:
    system.start_worker()


@pytest.mark.usefixtures("_worker")
class TestOneRun:
    def test_the_id_of_the_call_resolves_to_the_last_steps_result(self) -> None:
        run = sample.sums.delay(5)
        assert run.get(timeout=20) == 15 + 1000
        assert run.status == "SUCCESS"

    def test_progress_and_steps_tell_what_happened(self) -> None:
        """The result and the run's state are written together: whoever has the one sees the other."""
        run = sample.sums.delay(3)
        run.get(timeout=20)
        progress = run.progress
        assert (progress.state, progress.steps_done, progress.steps_total) == (RunState.SUCCEEDED, 5, 5)
        assert progress.fraction == 1.0
        steps = run.steps()
        assert [step.name.rsplit(".")[-1] for step in steps] == ["add", "add", "add", "total", "add"]
        assert {step.state for step in steps} == {StepState.SUCCEEDED}
        assert all(step.started_at <= step.ended_at for step in steps if step.started_at and step.ended_at)
        assert {step.attempt for step in steps} == {1}
        assert steps[-1].id == run.id

    def test_a_step_tells_what_it_took(self) -> None:
        run = sample.taking.delay(50_000_000)
        run.get(timeout=20)
        (step,) = run.steps()
        assert 45_000_000 < (step.peak_bytes or 0) < 200_000_000
        assert (step.cpu_s or 0.0) > 0

    def test_a_group_answers_with_the_list_of_its_results(self) -> None:
        run = sample.parallel.delay(3)
        assert run.get(timeout=20) == [0, 2, 4]
        assert run.progress.steps_done == run.progress.steps_total == 4

    def test_a_plain_group_and_its_nested_groups_can_be_waited_for(self) -> None:
        """Members subscribe when somebody waits for the whole, not as the group is built."""
        result = group(sample.add.s(1, 1), group(sample.add.s(2, 2), sample.add.s(3, 3))).delay()
        assert result.get(timeout=20) == [2, 4, 6]  # Celery unrolls a group in a group
        assert result.ready()

    def test_the_same_signature_used_twice_is_two_steps(self) -> None:
        run = sample.same_step_twice.delay()
        assert run.get(timeout=20) == 2
        assert len({step.id for step in run.steps()}) == 3

    def test_a_step_that_ignores_its_result_counts(self) -> None:
        run = sample.ignoring.delay(1)
        assert run.get(timeout=20) == 2
        assert run.progress.steps_done == 2

    def test_a_workflow_may_return_its_result_itself(self) -> None:
        run = sample.immediate.delay(21)
        assert run.get(timeout=20) == 42
        assert run.progress.state is RunState.SUCCEEDED

    def test_a_failing_step_fails_the_run_and_is_named(self) -> None:
        run = sample.one_fails.delay("no good")
        with pytest.raises(Exception, match="no good"):
            run.get(timeout=20)
        record = run.record()
        assert record.state is RunState.FAILED
        assert record.failure is not None
        assert record.failure["step"] == "tests.integration.sample.fail"
        assert record.failure["error"] == "ValueError: no good"
        assert "raise ValueError(message)" in record.failure["traceback"]

    def test_a_workflow_that_can_not_be_built_fails_with_its_own_error(self) -> None:
        run = sample.unbuildable.delay("bad plan")
        with pytest.raises(ValueError, match="bad plan"):
            run.get(timeout=20)
        assert run.progress.state is RunState.FAILED

    def test_another_process_follows_a_run_by_its_id(self, system: System) -> None:
        run = sample.sums.delay(2)
        script = f"from workflows import WorkflowRun; print(WorkflowRun({run.id!r}).get(timeout=20))"
        assert system.python(script, imports="").stdout.strip() == "1003"


def test_wrong_arguments_are_refused_where_the_call_is_made(system: System) -> None:
    with pytest.raises(CallRefused, match="missing a required argument: 'count'"):
        sample.sums.delay()
    assert system.client.dbsize() == 0


def test_so_are_those_of_a_task(system: System) -> None:
    with pytest.raises(CallRefused, match=r"sample.add: missing a required argument: 'y'; it takes \(x: int, y: int\)"):
        sample.add.apply_async((1,))
    assert system.client.dbsize() == 0


def test_a_canvas_with_a_step_that_does_not_fit_fails_its_run_before_any_step_begins(
    system: System, path: Path
) -> None:
    system.start_worker()
    run = sample.unfit.delay(str(path))
    with pytest.raises(CanvasUnusable, match=r"sample.twice: too many positional arguments; it takes \(number: int\)"):
        run.get(timeout=20)
    assert run.progress.state is RunState.FAILED
    assert run.steps() == []
    assert path.read_text() == ""


def test_a_run_waits_for_a_worker(system: System) -> None:
    run = sample.sums.delay(1)
    assert run.progress.state is RunState.QUEUED
    system.start_worker()
    assert run.get(timeout=20) == 1001


def test_an_unknown_task_fails_its_run_instead_of_leaving_it_queued(system: System) -> None:
    run = sample.sums.delay(1)
    system.start_worker(imports="")
    wait_until(lambda: run.progress.ended, what="the end of a run nobody can start")
    assert run.progress.state is RunState.FAILED


def test_a_step_whose_process_is_killed_runs_again_in_another(system: System) -> None:
    worker = system.start_worker()
    go, started = system.folder / "go", system.folder / "started"
    run: WorkflowRun = sample.waits.delay(str(go), str(started))
    pid = int(wait_until(lambda: started.exists() and started.read_text(), what="the step's start"))
    assert pid in worker.children()
    os.kill(pid, signal.SIGSTOP)
    go.touch()  # the first attempt can't see it any more, the second ends at once
    os.kill(pid, signal.SIGKILL)
    assert run.get(timeout=30) == 2
    assert [step.attempt for step in run.steps()] == [2, 1]
