"""What a step adds to the chord that it is a member of joins its run.

Its ids are the same each time, so a step that dies as it has added something adds it once. It is kept with the run: as
that is resumed, a step that has succeeded does not run again, but what it had added is added to the new chord.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery.canvas import Signature
from kombu.utils.json import dumps, loads

from agentlink.broker.cancelled import RUN_HEADER
from tasks.app import app
from tasks.base import BaseTask
from workflows.fitting import check_steps
from workflows.joining import fixed_id, headers_in_run
from workflows.plan import own_steps
from workflows.store import goes_on_ttl_s, run_key


def added(request: Any, canvas: Signature) -> Signature:
    """A canvas, ready to be one member more of the chord that the task whose request this is belongs to."""
    if getattr(request, RUN_HEADER, None) is None:
        return canvas
    number = request.agentlink_added = getattr(request, "agentlink_added", 0) + 1
    canvas, steps, _ = own_steps(canvas, app)
    check_steps(canvas, app)
    for leaf, place in steps:
        if not leaf.options.get("task_id"):
            leaf.set(task_id=fixed_id(leaf, f"{request.id}/added/{number}/{place}"))
        leaf.options["headers"] = headers_in_run(leaf, request)
    app.backend.patiently(_keep, _key(request), number, dumps(canvas))
    return canvas


def added_before(request: Any) -> Iterator[Signature]:
    """What a step that has succeeded had added, ready to be added again."""
    kept = app.backend.patiently(app.backend.client.hgetall, _key(request))
    for _, canvas in sorted((int(number), text) for number, text in kept.items()):
        canvas, steps, _ = own_steps(app.signature(loads(canvas)), app)
        for leaf, _ in steps:
            leaf.options["headers"] = headers_in_run(leaf, request)
        yield canvas


def _key(request: Any) -> str:
    return f"{run_key(getattr(request, RUN_HEADER))}:added:{request.id}"


def _keep(key: str, number: int, canvas: str) -> None:
    with app.backend.client.pipeline() as pipe:
        pipe.hset(key, str(number), canvas)
        pipe.expire(key, goes_on_ttl_s())
        pipe.execute()


def install() -> None:
    """Have every task do so. Doing it twice changes nothing."""
    if added not in BaseTask.adders:
        BaseTask.adders.append(added)
        BaseTask.recallers.append(added_before)
