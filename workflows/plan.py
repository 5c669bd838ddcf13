"""Give every step of a canvas its id and its place, so that both are the same each time the run is built.

A step's id is derived from the run's id and the step's place. The last step is left without: it takes over the run's
own id (`Task.replace` sees to that), which is how the id that `delay()` returned comes to resolve to the final answer.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

from celery import Celery
from celery.canvas import Signature, _chain, _chord, chunks, group, maybe_signature

from agentlink.broker.fanout import DEPTH_HEADER, checked_depth
from workflows.errors import CanvasUnusable
from workflows.states import StepState
from workflows.store import PLACE_HEADER, RUN_HEADER, StepRecord

Place = tuple[int, ...]


def plan(
    canvas: Signature, run_id: str, app: Celery, within: str = "", depth: int = 1, root_id: str | None = None
) -> tuple[Signature, list[StepRecord]]:
    """The canvas, ready to replace the task that built it, and the steps it consists of.

    `within` is the place of that task where it was a step itself, and its run's last one: its steps come below. Its run
    is `depth` deep in what began with the run `root_id`; a workflow among its steps is one deeper, unless it is the
    last step: then the same run goes on.

    Raises:
        CanvasUnusable: there is no step in it that could answer for the run.
        FanOutExceeded: a workflow in it would be too deep.
    """
    canvas, leaves, last = own_steps(canvas, app)
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
        leaf.options["headers"] = (leaf.options.get("headers") or {}) | headers
        steps.append(StepRecord(id=step_id, name=leaf.task, place=place, state=StepState.WAITING))
    return canvas, steps


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
        copy.tasks = [_own(task, app) for task in node.tasks]
        if not copy.tasks:
            raise CanvasUnusable("an empty chain has no step that could answer for the run")
    return copy


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
        for index, child in enumerate(_children(node)):
            yield from _leaves(child, (*place, index))
    else:
        yield node, place


def _children(node: Signature) -> list[Signature]:
    if not isinstance(node, _chord):
        return list(node.tasks)
    return [*(node.tasks.tasks if isinstance(node.tasks, group) else node.tasks), node.body]


def _last(node: Signature) -> Signature:
    while isinstance(node, (_chain, _chord)):
        node = node.body if isinstance(node, _chord) else node.tasks[-1]
    return node
