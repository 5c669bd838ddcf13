"""Give every step of a canvas its id and its place, so that both are the same each time the run is built.

A step's id is derived from the run's id and the step's place. The last step is left without: it takes over the run's
own id (`Task.replace` sees to that), which is how the id that `delay()` returned comes to resolve to the final answer.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from celery import Celery
from celery.canvas import Signature, _chain, _chord, chain, group

from workflows.states import StepState
from workflows.store import PLACE_HEADER, StepRecord


def plan(canvas: Signature, run_id: str, app: Celery) -> tuple[Signature, list[StepRecord]]:
    """The canvas, ready to replace the task that built it, and the steps it consists of."""
    canvas = _with_one_last_step(canvas, app)
    leaves = list(_leaves(canvas, ()))
    last = _last(canvas)
    steps = []
    for leaf, place in leaves:
        name = ".".join(map(str, place)) or "0"
        step_id = run_id if leaf is last else str(uuid.uuid5(uuid.UUID(run_id), name))
        if leaf is not last:
            leaf.set(task_id=step_id)
        leaf.options.setdefault("headers", {})[PLACE_HEADER] = name
        steps.append(StepRecord(id=step_id, name=leaf.task, place=name, state=StepState.WAITING))
    return canvas, steps


def _with_one_last_step(canvas: Signature, app: Celery) -> Signature:
    """A group has no last step that could answer for the run: collect its results in one, as `Task.replace` does."""
    collect = app.tasks["celery.accumulate"].s(index=0)
    if isinstance(canvas, group):
        return canvas | collect
    if isinstance(canvas, _chain) and isinstance(canvas.tasks[-1], group):
        return chain(*canvas.tasks[:-1], canvas.tasks[-1] | collect)
    return canvas


def _leaves(node: Signature, place: tuple[int, ...]) -> Iterator[tuple[Signature, tuple[int, ...]]]:
    for index, child in enumerate(_children(node)):
        yield from _leaves(child, (*place, index))
    if not isinstance(node, (_chain, _chord, group)):
        yield node, place


def _children(node: Signature) -> list[Any]:
    if isinstance(node, _chord):
        if not isinstance(node.tasks, (group, list)):
            node.tasks = list(node.tasks)  # a generator can be walked once only
        return [*(node.tasks.tasks if isinstance(node.tasks, group) else node.tasks), node.body]
    if isinstance(node, (_chain, group)):
        node.tasks = _distinct(node.tasks)
        return list(node.tasks)
    return []


def _distinct(tasks: Iterable[Signature]) -> list[Signature]:
    """The same signature used twice in a chain is two steps."""
    seen: set[int] = set()
    distinct = []
    for task in tasks:
        distinct.append(task.clone() if id(task) in seen else task)
        seen.add(id(task))
    return distinct


def _last(node: Signature) -> Signature:
    while isinstance(node, (_chain, _chord)):
        node = node.body if isinstance(node, _chord) else node.tasks[-1]
    return node
