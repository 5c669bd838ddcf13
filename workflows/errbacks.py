"""What a run's caller has linked for its failure (`link_error`, `on_error`) is called once, wherever the run fails.

A run that is resumed and fails again has failed once more.

Celery links it to the tasks of a canvas: to several, so that some failures call it several times, and to none that ends
by being revoked or by killing its process too often. Here it is kept with the run, as a message ready to be queued, and
queued in the step that records that the run has failed or was cancelled.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from celery.app.task import Context
from kombu.utils.functional import maybe_list

from agentlink.broker.calls import Bundle, Command, Outgoing, current_bundle
from agentlink.broker.cancelled import RUN_HEADER
from agentlink.broker.fanout import DEPTH_HEADER
from agentlink.broker.results import ResultBackend
from tasks.app import app, task
from workflows.states import RUN_STATE_OF_CELERY, RunState
from workflows.store import ERRBACKS_FIELD, PLACE_HEADER, TELLS_END_HEADER, run_key

_NAME = "workflows.call_errbacks"
_CALLED = {celery_state for celery_state, state in RUN_STATE_OF_CELERY.items() if state is not RunState.SUCCEEDED}


class _Kept(Bundle):
    """Messages that are not sent."""

    def send(self) -> None:
        """They are kept."""


def keeping_commands(run_id: str, root_id: str | None, errbacks: Any) -> list[Command]:
    """What keeps them with a run that is being recorded, unless it has some; nothing where there are none."""
    if not (errbacks := maybe_list(errbacks)):
        return []
    # Without hyphens: the script that queues it finds it in the message by a pattern, and adds which failure it is.
    kept, own_id = _Kept(), uuid.uuid5(uuid.NAMESPACE_OID, f"{run_id}/errbacks").hex
    token = current_bundle.set(kept)
    try:
        # A tree of its own: the run's may be full.
        call_errbacks.apply_async((run_id, root_id or run_id, errbacks), task_id=own_id, root_id=own_id)
    finally:
        current_bundle.reset(token)
    return [["HSETNX", run_key(run_id), ERRBACKS_FIELD, _encoded(kept.messages[0], own_id)]]


def are_kept(request: Any) -> bool:
    """Whether what is linked to a task for its failure is kept with the run that the task starts."""
    if not getattr(app.tasks.get(getattr(request, "task", None)), "builds_canvas", False) or within(request):
        return False
    return bool(app.backend.client.hexists(run_key(request.id), ERRBACKS_FIELD))


def within(request: Any) -> str:
    """The place of a workflow that is its run's last step and has the run's id; '' for one that is a run itself."""
    place, run_id = getattr(request, PLACE_HEADER, None), getattr(request, RUN_HEADER, None)
    return place if place is not None and run_id in (None, request.id) else ""


@task(name=_NAME, bind=True, ignore_result=True)
def call_errbacks(self: Any, run_id: str, root_id: str, errbacks: list[dict[str, Any]]) -> None:
    """Call what a run that has failed has linked for that."""
    failure = self.request.id.rpartition("-")[2]
    meta = app.backend.get_task_meta(run_id)
    error = meta["result"] if meta["status"] in _CALLED else None
    for number, errback in enumerate(errbacks):
        # Should this be done twice: what has run does not run again.
        task_id = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{run_id}/errback/{number}/{failure}"))
        own = app.signature(errback).set(task_id=task_id, root_id=root_id, parent_id=run_id)
        own.options["headers"] = (own.options.get("headers") or {}) | {DEPTH_HEADER: 1, TELLS_END_HEADER: True}
        request = Context(id=run_id, root_id=root_id, errbacks=[own], task=_NAME, delivery_info={})
        app.backend._call_task_errbacks(request, error, meta.get("traceback"))


def _encoded(outgoing: Outgoing, task_id: str) -> str:
    return json.dumps({"key": outgoing.key, "message": outgoing.message, "wake": outgoing.wake, "id": task_id})


def install() -> None:
    """Have Celery leave alone what is kept. Doing it twice changes nothing."""
    if are_kept not in ResultBackend.errback_keepers:
        ResultBackend.errback_keepers.append(are_kept)
