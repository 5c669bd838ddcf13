"""Workflows: functions that return a canvas. Calling one starts a run; each task in it is a step."""

from __future__ import annotations

import pytest

from tests.integration.sample import one_fails, sums
from workflows import CallRefused, RunState, StepState, WorkflowRun


def test_a_call_returns_a_handle_at_once_and_get_waits_for_the_answer() -> None:
    run = sums.delay(3)
    assert isinstance(run, WorkflowRun)
    assert run.get(timeout=20) == (1 + 2 + 3) + 1000


def test_progress_tells_how_far_a_run_has_come() -> None:
    run = sums.delay(3)
    run.get(timeout=20)
    assert run.progress.state is RunState.SUCCEEDED
    assert run.progress.steps_done == run.progress.steps_total == 5


def test_steps_tell_what_each_task_did() -> None:
    run = sums.delay(2)
    run.get(timeout=20)
    assert [(step.place, step.name.split(".")[-1], step.state) for step in run.steps()] == [
        ("0.0", "add", StepState.SUCCEEDED),
        ("0.1", "add", StepState.SUCCEEDED),
        ("0.2", "total", StepState.SUCCEEDED),
        ("1", "add", StepState.SUCCEEDED),
    ]


def test_the_first_step_to_fail_fails_the_run_and_is_kept_with_its_traceback() -> None:
    run = one_fails.delay("out of paper")
    with pytest.raises(Exception, match="out of paper"):
        run.get(timeout=20)
    failure = run.record().failure
    assert failure is not None
    assert failure["error"] == "ValueError: out of paper"


def test_wrong_arguments_are_refused_before_anything_is_sent() -> None:
    with pytest.raises(CallRefused, match=r"missing a required argument: 'count'"):
        sums.delay(cuont=3)


def test_any_process_can_follow_a_run_by_its_id() -> None:
    run_id = sums.delay(1).id
    assert WorkflowRun(run_id).get(timeout=20) == 1001
