"""Arguments that don't fit are refused where the call is made, and where a canvas is built."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.backends.base import Backend

from tasks import BaseTask, app, task
from tasks.errors import ArgumentsUnfit
from tests.integration.sample import add, hand_over, join, sums, total, twice
from workflows import CallRefused
from workflows.errors import CanvasUnusable
from workflows.joining import joined
from workflows.plan import plan


@task(typing=False)
def untyped(x: int) -> int:
    return x


def _with_a_connection(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function("a connection", *args, **kwargs)

    return call


@task
@_with_a_connection
def queried(connection: str, query: str) -> str:
    return connection + query


class Written(BaseTask):
    name = "tests.written"

    def run(self, x: int) -> int:
        return x


app.register_task(Written())
written = app.tasks["tests.written"]

WRONG_CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "missing": (lambda: add.delay(1), "add: missing a required argument: 'y'; it takes (x: int, y: int) -> int"),
    "too many": (lambda: add.delay(1, 2, 3), "add: too many positional arguments; it takes (x: int, y: int) -> int"),
    "unknown": (lambda: add.delay(1, z=2), "add: missing a required argument: 'y'; it takes (x: int, y: int)"),
    "twice": (lambda: add.delay(1, x=2), "add: multiple values for argument 'x'; it takes (x: int, y: int)"),
    "apply_async": (lambda: add.apply_async((1,)), "add: missing a required argument: 'y'"),
    "signature": (lambda: add.s(1).delay(), "add: missing a required argument: 'y'"),
    "bound": (
        lambda: hand_over.delay(1, 2),
        "hand_over: too many positional arguments; it takes (number: int) -> None",
    ),
    "a class": (lambda: written.delay(), "tests.written: missing a required argument: 'x'; it takes (x: int) -> int"),
    "workflow": (lambda: sums.delay(), "sums: missing a required argument: 'count'; it takes (count: int) -> Any"),
}


@pytest.mark.parametrize("call", WRONG_CALLS)
def test_a_call_that_does_not_fit_is_refused_at_once(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "send_task", lambda *_, **__: pytest.fail("it was sent"))
    make, says = WRONG_CALLS[call]
    with pytest.raises(CallRefused) as refused:
        make()
    assert says in str(refused.value)
    assert isinstance(refused.value, TypeError)


@pytest.mark.parametrize(
    "call",
    [
        lambda: add.delay(1, y=2),
        lambda: hand_over.delay(1),
        lambda: untyped.delay(),
        lambda: queried.delay("select"),
        lambda: written.delay(1),
    ],
    ids=["plain", "bound", "typing=False", "wrapped", "a class"],
)
def test_a_call_that_fits_is_sent(call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "send_task", lambda name, *_, **__: name)
    assert call() is not None


def test_the_refusal_survives_the_way_to_another_process() -> None:
    store = Backend(app=Celery(set_as_current=False), serializer="json")
    error = ArgumentsUnfit("a.task", "too many positional arguments; it takes ()")
    back = store.exception_to_python(json.loads(json.dumps(store.prepare_exception(error))))
    assert (type(back), str(back)) == (ArgumentsUnfit, str(error))


WRONG_CANVASES: dict[str, tuple[Callable[[], Any], str]] = {
    "alone": (lambda: add.s(1), "the step tests.integration.sample.add: missing a required argument: 'y'"),
    "first of a chain": (lambda: chain(add.s(1), twice.s()), "add: missing a required argument: 'y'"),
    "immutable": (lambda: chain(add.s(1, 1), add.si(1)), "add: missing a required argument: 'y'"),
    "later": (
        lambda: chain(add.s(1, 1), twice.s(3)),
        r"twice, with the result of .* its first argument: too many .*; it takes \(number: int\) -> int",
    ),
    "unknown keyword": (lambda: chain(add.s(1, 1), add.s(1, z=3)), "got an unexpected keyword argument 'z'"),
    "in a header": (lambda: chord([add.s(1, 1), add.s(1)], total.s()), "add: missing a required argument: 'y'"),
    "a chord's body": (lambda: chord([add.s(1, 1)], join.s([])), "join, with the result of .* too many"),
    "in a nested group": (
        lambda: chain(add.s(1, 1), group(twice.s(), chain(twice.s(), add.s(1, 2)))),
        "add, with the result of .* too many positional arguments",
    ),
    "a workflow": (lambda: chain(add.s(1, 1), sums.si()), "sums: missing a required argument: 'count'"),
}


@pytest.mark.parametrize("shape", WRONG_CANVASES)
def test_a_canvas_with_a_step_that_does_not_fit_is_refused(shape: str) -> None:
    build, says = WRONG_CANVASES[shape]
    with pytest.raises(CanvasUnusable, match=says):
        plan(build(), "run", app)


@pytest.mark.parametrize(
    "build",
    [
        lambda: chain(add.s(1, 1), add.s(1), sums.s(), twice.s()),
        lambda: chain(add.s(1, 1), chord([twice.s(), add.si(1, 1)], total.s())),
        lambda: chain(group(add.s(1, 1), add.s(2, 2)), total.s(), add.s(y=1)),
        lambda: chord([add.s(1), twice.s()], total.s()).clone(args=(1,)),
        lambda: chain(untyped.s(), untyped.s(1, 2, 3)),
        lambda: chain(app.signature("known.elsewhere", args=(1,)), twice.s()),
        lambda: chain(add.starmap([(1, 2), (3, 4)]), total.s()),
        lambda: chain(add.chunks([(1, 2), (3, 4)], 1), join.s()),
    ],
    ids=["partial", "chord", "group", "given as a whole", "typing=False", "unknown", "starmap", "chunks"],
)
def test_a_canvas_whose_steps_fit_or_cannot_be_known_is_planned(build: Callable[[], Any]) -> None:
    steps = plan(build(), "run", app).steps
    assert steps[-1].id == "run"


class TestPlainCanvases:
    """What is sent with a call is looked at where that is made, like the call itself."""

    @pytest.mark.parametrize(
        ("send", "problem"),
        [
            (lambda: (add.s(1, 2) | add.s()).delay(), "add, with the result of what comes before it as its first"),
            (lambda: chain(add.s(1, 2), twice.s(), add.si(1)).apply_async(), "the step .*add: missing a required"),
            (lambda: chain(add.s(1, 2), group(twice.s(), add.s(1, 2))).delay(), "add, with .*: too many positional"),
            (lambda: chord([add.s(1, 2), add.s(3, 4)], add.s()).delay(), "add, with .*: missing a required"),
            (lambda: chain(add.s(1), twice.s()).delay(), "add: missing a required argument: 'y'"),
        ],
    )
    def test_one_that_can_not_run_is_refused(self, send: Callable[[], Any], problem: str) -> None:
        with pytest.raises(ArgumentsUnfit, match=problem):
            send()

    @pytest.mark.parametrize(
        "canvas",
        [
            chain(add.s(1, 2), add.s(3), twice.s()),
            chain(add.s(1, 2), add.si(3, 4), untyped.s(1, 2, 3)),
            chain(group(add.s(1, 2), add.s(3, 4)), total.s(), group(add.s(1), twice.s())),
            chain(add.s(1, 2), chain(add.s(3), twice.s()), chord([add.s(1), twice.s()], total.s())),
            add.s(1, 2).set(link=twice.s()) | app.signature("only.elsewhere", (1,)),
            chord(group([add.s(1, 2), add.s(3, 4)]), chain(total.s(), add.s(1))),
        ],
    )
    def test_partial_ones_are_not(self, canvas: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        sent: list[str] = []
        monkeypatch.setattr(app, "send_task", lambda name, *args, **options: sent.append(name))
        monkeypatch.setattr(app.backend, "apply_chord", lambda *args, **options: None)
        canvas.delay()
        assert sent


def test_what_a_task_is_to_be_replaced_by_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    request = SimpleNamespace(task=hand_over.name, id="step", replaced_task_nesting=0)
    with pytest.raises(CanvasUnusable, match=r"the step .*add, with the result of what comes before it"):
        joined(request, chain(add.s(1, 2), add.s()))
    assert joined(request, chain(add.s(1, 2), add.s(3)))
