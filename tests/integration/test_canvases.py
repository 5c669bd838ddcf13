"""Whatever shape a workflow's canvas has, its run ends, and its id resolves to what that canvas gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, chord, group

from tasks import app
from tests.integration import sample
from tests.integration.sample import add, double, fail, flaky, hand_over, total
from tests.integration.system import System
from tests.waiting import wait_until
from workflows import RunState, StepState, WorkflowRun

one = add.s(1, 1)
plus = add.s(1)

CANVASES: dict[str, tuple[Callable[[], Any], Any, int]] = {
    "one task": (lambda: add.s(1, 1), 2, 1),
    "chain": (lambda: chain(add.s(1, 1), add.s(2), add.s(3)), 7, 3),
    "group": (lambda: group(add.s(1, 1), add.s(2, 2)), [2, 4], 3),
    "group of one": (lambda: group([add.s(1, 1)]), [2], 2),
    "the same signature thrice in a group": (lambda: group([one, one, one]), [2, 2, 2], 4),
    "the same signature in a group and a chain in it": (
        lambda: chain(add.s(0, 1), group(plus, chain(plus, plus)), total.s()), 5, 5,
    ),
    "chain of groups": (
        lambda: chain(group(add.s(1, 1), add.s(2, 2)), total.s(), group(add.s(1), add.s(2))), [7, 8], 6,
    ),
    "group after a group": (
        lambda: chain(group(add.s(1, 1), add.s(2, 2)), group(total.s(), total.s())), [6, 6], 5,
    ),
    "chord with a group as its body": (
        lambda: chord([add.s(1, 1), add.s(2, 2)], group(total.s(), total.s())), [6, 6], 5,
    ),
    "chord in a chord's header": (
        lambda: chord([chord([add.s(1, 1), add.s(2, 2)], total.s()), add.s(3, 3)], total.s()), 12, 5,
    ),
    "chord after a chord": (
        lambda: chain(chord([add.s(1, 1), add.s(2, 2)], total.s()), group(add.s(1), add.s(2)), total.s()), 15, 6,
    ),
    "chunks": (lambda: add.chunks([(n, n) for n in range(5)], 2), [[0, 2], [4, 6], [8]], 4),
    "starmap": (lambda: add.starmap([(1, 1), (2, 2)]), [2, 4], 1),
    "immutable signatures": (lambda: chain(add.s(1, 1), add.si(5, 5)), 10, 2),
    "generator": (lambda: chord((add.s(n, n) for n in range(4)), total.s()), 12, 5),
    "a step that replaces itself": (lambda: chain(add.s(1, 1), hand_over.s()), 12, 3),
    "a first step that replaces itself": (lambda: chain(hand_over.s(1), add.s(1)), 12, 3),
    "a workflow as the last step": (lambda: chain(add.s(1, 1), double.s()), 8, 3),
    "a workflow as the first step": (lambda: chain(double.s(1), add.s(1)), 5, 2),
    "a workflow among a chord's header": (lambda: chord([double.s(1), add.s(1, 1)], total.s()), 6, 3),
    "a retried step": (lambda: chain(flaky.s(1), add.s(1)), 2, 2),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _worker(module_system: System) -> None:
    module_system.start_worker()


@pytest.mark.parametrize("shape", CANVASES)
def test_a_run_ends_with_what_its_canvas_gives(shape: str) -> None:
    _, expected, steps = CANVASES[shape]
    run = sample.shaped.delay(shape)
    assert run.get(timeout=20) == expected
    progress = run.progress
    assert (progress.state, progress.steps_done, progress.steps_total) == (RunState.SUCCEEDED, steps, steps)
    assert {step.state for step in run.steps()} == {StepState.SUCCEEDED}


FAILING: dict[str, Callable[[], Any]] = {
    "only": lambda: fail.s("no good"),
    "first in a chain": lambda: chain(fail.s("no good"), add.si(1, 1)),
    "last in a chain": lambda: chain(add.s(1, 1), fail.si("no good")),
    "member of a group": lambda: group(add.s(1, 1), fail.s("no good")),
    "member of a chord's header": lambda: chord([add.s(1, 1), fail.s("no good")], total.s()),
    "body of a chord": lambda: chord([add.s(1, 1), add.s(1, 1)], fail.si("no good")),
    "in a chord in a chord's header": lambda: chord(
        [chord([add.s(1, 1), fail.s("no good")], total.s()), one], total.s()
    ),
    "before a group in a chain": lambda: chain(group(add.s(1, 1), fail.s("no good")), group(total.s(), total.s())),
    "in a workflow that is a step": lambda: chain(sample.one_fails.si("no good"), add.si(1, 1)),
    "in a workflow that is the last step": lambda: chain(add.s(1, 1), sample.one_fails.si("no good")),
    "ignoring its result": lambda: chain(sample.ignored_failure.si("no good"), add.si(1, 1)),
    "a task nobody knows": lambda: chain(add.s(1, 1), app.signature("tests.unknown"), add.s(1)),
}


@pytest.mark.parametrize("shape", FAILING)
def test_a_failing_step_ends_its_run_and_whoever_waits_gets_its_error(shape: str) -> None:
    run = sample.shaped.delay(shape)
    with pytest.raises(Exception, match=r"no good|tests\.unknown"):
        run.get(timeout=20)
    assert run.progress.state is RunState.FAILED
    failure = run.record().failure
    assert failure is not None
    assert "no good" in failure["error"] or "tests.unknown" in failure["error"]


def test_a_workflow_as_a_step_is_a_run_of_its_own() -> None:
    run = sample.shaped.delay("a workflow as the first step")
    assert run.get(timeout=20) == 5
    inner = WorkflowRun(run.steps()[0].id)
    assert inner.record().parent_id == run.id
    assert inner.progress.steps_done == inner.progress.steps_total == 2


def test_a_revoked_step_cancels_its_run(module_system: System) -> None:
    started = module_system.folder / "started"
    run = sample.waits.delay(str(module_system.folder / "never"), str(started))
    wait_until(started.exists, what="the step's start")
    app.control.revoke(run.steps()[0].id, terminate=True)
    wait_until(lambda: run.progress.ended, what="the run's end")
    assert run.progress.state is RunState.CANCELLED


def test_a_plain_clients_call_is_a_run_too() -> None:
    """Flower, or anybody with Celery and the task's name."""
    result = app.send_task(sample.sums.name, (2,))
    assert result.get(timeout=20) == 1003
    assert WorkflowRun(result.id).progress.state is RunState.SUCCEEDED


def test_an_id_of_ones_own_need_not_be_a_uuid() -> None:
    assert sample.sums.apply_async((2,), task_id="my run").get(timeout=20) == 1003


def test_an_empty_chain_is_refused_in_words() -> None:
    run = sample.shaped.delay("empty chain")
    with pytest.raises(Exception, match="an empty chain has no step that could answer"):
        run.get(timeout=20)


def test_called_in_this_process_a_workflow_needs_no_broker() -> None:
    assert sample.sums(2) == 1003
    assert sample.sums.apply((2,)).get() == 1003
