"""Steps get their ids and places from the run's id and the canvas alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, chord, group

from tasks import app
from tests.integration.sample import add, sums, total
from workflows import FanOutExceeded
from workflows.plan import plan

RUN_ID = "b4ac4d1c-0000-4000-8000-000000000001"

CANVASES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "one task": (lambda: add.s(1, 1), ["0"]),
    "chain": (lambda: chain(add.s(1, 1), add.s(2)), ["0", "1"]),
    "group": (lambda: group(add.s(1, 1), add.s(2, 2)), ["0", "1", "2"]),
    "chord": (lambda: chord([add.s(1, 1), add.s(2, 2)], total.s()), ["0", "1", "2"]),
    "generator": (lambda: chord((add.s(n, n) for n in range(3)), total.s()), ["0", "1", "2", "3"]),
    "chord then task": (lambda: chord([add.s(1, 1)] * 2, total.s()) | add.s(1), ["0.0", "0.1", "0.2", "1"]),
    "group in a group": (lambda: group(add.s(1, 1), group(add.s(2, 2), group(add.s(3, 3)))), ["0", "1", "2", "3"]),
    "chain that ends in a group": (
        lambda: chain(add.s(1, 1), group(add.s(1), add.s(2))),
        ["0", "1.0", "1.1", "1.2"],
    ),
    "chord in a chord": (
        lambda: chord([chord([add.s(1, 1), add.s(2, 2)], total.s()), add.s(3, 3)], total.s()),
        ["0.0", "0.1", "0.2", "1", "2"],
    ),
}


@pytest.mark.parametrize("shape", CANVASES)
def test_places_follow_the_canvas_and_ids_are_the_same_each_time(shape: str) -> None:
    build, places = CANVASES[shape]
    first = plan(build(), RUN_ID, app).steps
    again = plan(build(), RUN_ID, app).steps
    assert [step.place for step in first] == places
    assert first == again
    assert len({step.id for step in first}) == len(first)


@pytest.mark.parametrize("shape", CANVASES)
def test_the_last_step_takes_over_the_runs_id(shape: str) -> None:
    planned = plan(CANVASES[shape][0](), RUN_ID, app)
    canvas, steps = planned.canvas, planned.steps
    assert [step.id for step in steps].index(RUN_ID) == len(steps) - 1
    assert canvas.freeze(RUN_ID).id == RUN_ID


def test_another_run_has_other_ids() -> None:
    build = CANVASES["chain"][0]
    one = plan(build(), RUN_ID, app).steps
    other = plan(build(), RUN_ID.replace("1", "2"), app).steps
    assert not {step.id for step in one} & {step.id for step in other}


def test_a_workflow_among_the_steps_is_one_deeper_but_as_the_last_step_it_goes_on_with_the_run() -> None:
    canvas = plan(chain(sums.si(1), add.si(1, 1), sums.si(1)), RUN_ID, app, depth=3).canvas
    assert [step.options["headers"]["agentlink_depth"] for step in canvas.tasks] == [4, 3, 3]


def test_a_workflow_that_would_be_too_deep_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(FanOutExceeded, match="17 deep in run root, and 16 is the most"):
        plan(chain(sums.si(1), add.si(1, 1)), RUN_ID, app, depth=16, root_id="root")
    plan(sums.si(1), RUN_ID, app, depth=16)
