"""What a step has replaced itself by joins its run.

Its steps are found among the run's, a run among them is one of its steps, and their ids are the same each time: a step
whose process dies as it has just sent them on sends them on again, and those that have run by then do not run twice.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from celery.canvas import Signature, _chain

from agentlink.broker.cancelled import RUN_HEADER
from tasks.app import app
from tasks.base import BaseTask
from workflows.fitting import check_steps
from workflows.plan import own_steps
from workflows.store import PLACE_HEADER, REPLAY_HEADER, STANDS_FOR_HEADER


def joined(request: Any, canvas: Signature) -> Signature:
    """A canvas, ready to replace the task whose request this is.

    Raises:
        CanvasUnusable: one of its steps can't be called as it would be.
    """
    if getattr(app.tasks.get(request.task), "builds_canvas", False):
        return canvas  # it has been planned
    if isinstance(canvas, _chain) and not canvas.tasks:
        return canvas  # Celery refuses it in words of its own
    run_id, nesting = getattr(request, RUN_HEADER, None), getattr(request, "replaced_task_nesting", None) or 0
    canvas, steps, last = own_steps(canvas, app)
    check_steps(canvas, app)
    for leaf, place in steps:
        if leaf is not last and not leaf.options.get("task_id"):
            leaf.set(task_id=fixed_id(leaf, f"{request.id}/{nesting}/{place}"))
        if run_id is None:
            continue
        headers = headers_in_run(leaf, request)
        if leaf is not last:
            headers |= {STANDS_FOR_HEADER: request.id}
        # A run in the step's place ends it. Any other task there is that step itself: its place is known.
        if leaf is last and getattr(app.tasks.get(leaf.task), "builds_canvas", False):
            headers |= {PLACE_HEADER: getattr(request, PLACE_HEADER, None) or ""}
        leaf.options["headers"] = headers
    return canvas


def headers_in_run(leaf: Signature, request: Any) -> dict[str, Any]:
    """The headers of a task that belongs to the run of the one whose request this is."""
    headers = (leaf.options.get("headers") or {}) | {RUN_HEADER: getattr(request, RUN_HEADER)}
    if replay := getattr(request, REPLAY_HEADER, None):
        headers[REPLAY_HEADER] = replay  # what had succeeded is to tell those that come after it once more
    return headers


def fixed_id(leaf: Signature, place: str) -> str:
    """The id of a task at a place: of what it does, too, since an attempt may come to other conclusions."""
    does = json.dumps([leaf.task, leaf.args, leaf.kwargs], default=repr)
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{place}/{does}"))


def install() -> None:
    """Have every task do so. Doing it twice changes nothing."""
    if joined not in BaseTask.joiners:
        BaseTask.joiners.append(joined)
