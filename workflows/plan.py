"""Give every step of a canvas its id and its place, so that both are the same each time the run is built.

A step's id is derived from the run's id and the step's place. The last step is left without: it takes over the run's
own id (`Task.replace` sees to that), which is how the id that `delay()` returned comes to resolve to the final answer.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from celery import Celery
from celery.canvas import Signature, _chain, _chord, chunks, group, maybe_signature
from celery.utils.functional import maybe_list

from agentlink.broker.cancelled import RUN_HEADER
from agentlink.broker.fanout import DEPTH_HEADER, checked_depth
from workflows.errors import CanvasUnusable
from workflows.fitting import check_steps
from workflows.shape import children, notation
from workflows.states import StepState
from workflows.store import PLACE_HEADER, REPLAY_HEADER, StepRecord

Place = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A canvas, ready to replace the task that built it; the steps it consists of, and how they hang together."""

    canvas: Signature
    steps: list[StepRecord]
    graph: str


def plan(
    canvas: Signature,
    run_id: str,
    app: Celery,
    within: str = "",
    depth: int = 1,
    root_id: str | None = None,
    replay: int = 0,
    overrides: Mapping[str, tuple[list[Any], dict[str, Any]]] | None = None,
) -> Plan:
    """Give every step its id and its place.

    `within` is the place of the task that has built the canvas where that was a step itself, and its run's last one:
    its steps come below. Its run is `depth` deep in what began with the run `root_id`; a workflow among its steps is
    one deeper, unless it is the last step: then the same run goes on. `replay` tells how often the run was resumed,
    `overrides` are arguments for steps, by their ids, in place of those they have in the canvas.

    Raises:
        CanvasUnusable: there is no step in it that could answer for the run, or one whose arguments don't fit.
        FanOutExceeded: a workflow in it would be too deep.
    """
    canvas, leaves, last = own_steps(canvas, app)
    check_steps(canvas, app)
    steps = []
    for leaf, place_below in leaves:
        place = f"{within}.{place_below}" if within else place_below
        step_id = run_id if leaf is last else str(uuid.uuid5(uuid.NAMESPACE_OID, f"{run_id}/{place}"))
        if leaf is last:
            leaf.set(ignore_result=False)  # or nobody who waits for the run would hear of its end
        else:
            leaf.set(task_id=step_id)
        below = leaf is not last and getattr(app.tasks.get(leaf.task), "builds_canvas", False)
        step_depth = checked_depth(root_id or run_id, depth + 1) if below else depth
        headers = {PLACE_HEADER: place, RUN_HEADER: run_id, DEPTH_HEADER: step_depth}
        if replay:
            headers[REPLAY_HEADER] = replay
        if overrides and step_id in overrides:
            leaf.args, leaf.kwargs = overrides[step_id]
        _fix_callbacks(leaf, step_id, replay, app)
        leaf.options["headers"] = (leaf.options.get("headers") or {}) | headers
        steps.append(StepRecord(id=step_id, name=leaf.task, place=place, state=StepState.WAITING))
    return Plan(canvas=canvas, steps=steps, graph=notation(canvas))


def _fix_callbacks(leaf: Signature, step_id: str, replay: int, app: Celery) -> None:
    """What is linked to a step gets the same id each time too, or a canvas that is built twice would do it twice.

    A step that fails again when its run is resumed tells so again.
    """
    for option, what in (("link", step_id), ("link_error", f"{step_id}/{replay}")):
        if callbacks := maybe_list(leaf.options.get(option)):
            leaf.options[option] = [
                _with_id(maybe_signature(callback, app=app), f"{what}/{option}/{number}")
                for number, callback in enumerate(callbacks)
            ]


def _with_id(callback: Signature, what: str) -> Signature:
    if isinstance(callback, (_chain, _chord, group)):
        return callback  # its parts have ids of their own
    return callback.clone(task_id=str(uuid.uuid5(uuid.NAMESPACE_OID, what)))


def replacement(canvas: Signature, step_id: str, app: Celery) -> Signature:
    """The canvas, ready to replace a step: should that be done twice, its tasks have the same ids, and run once."""
    canvas = _with_one_last_step(_own(canvas, app), app)
    last = _last(canvas)
    for leaf, numbers in _leaves(canvas, ()):
        if leaf is not last:
            leaf.set(task_id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{step_id}/{'.'.join(map(str, numbers))}")))
    return canvas


def own_steps(canvas: Signature, app: Celery) -> tuple[Signature, list[tuple[Signature, str]], Signature]:
    """A copy of a canvas whose tasks may be told apart, those with their places, and the one that answers for all.

    Raises:
        CanvasUnusable: there is none that could.
    """
    canvas = _in_a_row(_with_one_last_step(_own(canvas, app), app), app)
    leaves = [(leaf, ".".join(map(str, numbers or (0,)))) for leaf, numbers in _leaves(canvas, ())]
    return canvas, leaves, _last(canvas)


def _in_a_row(canvas: Signature, app: Celery) -> Signature:
    """A chain whose chords follow each other: by `|` Celery puts all that comes after a chord into the chord's body.

    It does this too, but only after it has given ids to what is nested, in time that grows with the cube of its depth.
    """
    if isinstance(canvas, _chord) and isinstance(canvas.body, _chain):
        canvas = _chain(canvas, app=app)
    if isinstance(canvas, _chain):
        canvas._unroll_chords(app)
    return canvas


def _own(node: Signature, app: Celery) -> Signature:
    """A copy in which no signature stands twice: each place is a step of its own. Generators are walked here, once."""
    node = maybe_signature(node, app=app)
    if isinstance(node, chunks):
        node = node.group()
    copy = node.clone()
    if isinstance(node, _chord):
        header = node.tasks if isinstance(node.tasks, group) else group(node.tasks, app=app)
        copy.tasks = list(_members(header, app))
        copy.body = _own(node.body, app)
    elif isinstance(node, group):
        # Celery makes one group of several too, and turns round those inside: their results would come in that order.
        copy.tasks = list(_members(node, app))
    elif isinstance(node, _chain):
        copy.tasks = _folded([_own(task, app) for task in node.tasks], app)
        if not copy.tasks:
            raise CanvasUnusable("an empty chain has no step that could answer for the run")
    return copy


def _folded(tasks: list[Signature], app: Celery) -> list[Signature]:
    """The tasks of a chain, so that what comes after a chord whose body is a group gets the results of all of it.

    Celery hands over that of the first, and so has it fail: that of `group | group | group`, say.
    """
    for index, node in enumerate(tasks[:-1]):
        innermost = node
        while isinstance(innermost, _chord) and isinstance(innermost.body, _chord):
            innermost = innermost.body
        if isinstance(innermost, _chord) and isinstance(innermost.body, group):
            innermost.body = _one_after_another([innermost.body, *_folded(tasks[index + 1 :], app)], app)
            return tasks[: index + 1]
    return tasks


def _one_after_another(tasks: list[Signature], app: Celery) -> Signature:
    """One canvas of several, made for a chord's body: Celery can't hand a header's results to a chain of groups."""
    first, *rest = tasks
    if rest and isinstance(first, group):
        return _chord(first.tasks, body=_one_after_another(rest, app), app=app)
    return _chain(*tasks, app=app) if rest else first


def _members(node: Signature, app: Celery) -> Iterator[Signature]:
    """A group's, and those of the groups in it, in their order."""
    for task in node.tasks:
        own = _own(task, app)
        if isinstance(own, group):
            yield from own.tasks
        else:
            yield own


def _with_one_last_step(node: Signature, app: Celery) -> Signature:
    """A group has no last step that could answer for the run: its results are collected in one, at whatever depth."""
    if isinstance(node, group):
        return node | app.tasks["celery.accumulate"].s(index=0)
    if isinstance(node, _chord):
        node.body = _with_one_last_step(node.body, app)
    elif isinstance(node, _chain):
        node.tasks = [*node.tasks[:-1], _with_one_last_step(node.tasks[-1], app)]
    return node


def _leaves(node: Signature, place: Place) -> Iterator[tuple[Signature, Place]]:
    if isinstance(node, (_chain, _chord, group)):
        for index, child in enumerate(children(node)):
            yield from _leaves(child, (*place, index))
    else:
        yield node, place


def _last(node: Signature) -> Signature:
    while isinstance(node, (_chain, _chord)):
        node = node.body if isinstance(node, _chord) else node.tasks[-1]
    return node
