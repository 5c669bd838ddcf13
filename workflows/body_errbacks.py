"""What is linked to a chord's body for a failure is called when a member's failure ends a run.

Celery calls it when all members have ended. In a run that has failed some never begin, and it would never be.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery.app.task import Context
from celery.canvas import Signature, _chain, _chord, maybe_signature
from kombu.utils.functional import maybe_list

from agentlink.broker.cancelled import RUN_HEADER
from agentlink.broker.chords import first_task, run_of
from agentlink.broker.results import ResultBackend
from agentlink.settings import load
from tasks.app import app
from workflows.store import REPLAY_HEADER

_TOLD_PREFIX = "agentlink:told:"


def tell_bodies(request: Any, error: BaseException, traceback: str | None) -> None:
    """Call it for all chords that the failed step was a part of, from the innermost."""
    if getattr(request, RUN_HEADER, None) is None:
        return
    for body in _bodies_after(request):
        if (errbacks := _errbacks(body)) and not are_told(body):
            told = Context(
                id=body.options.get("task_id") or first_task(body).options.get("task_id"), errbacks=errbacks,
                root_id=request.root_id, task=body.task, delivery_info={},
            )  # fmt: skip
            app.backend._call_task_errbacks(told, error, traceback)


def are_told(body: Any) -> bool:
    """Whether it has been called for a body before; if not, whoever asks is to do so now."""
    if run_of(body) is None:
        return False
    first = first_task(body).options
    key = f"{_TOLD_PREFIX}{first.get('task_id')}:{first['headers'].get(REPLAY_HEADER) or 0}"
    is_first = app.backend.patiently(lambda: app.backend.client.set(key, "", nx=True, ex=int(load().keep_results_s)))
    return not is_first


def _bodies_after(request: Any) -> Iterator[Signature]:
    # The message's chain is in the order of a pile: what comes last lies at the bottom.
    ends_in = maybe_signature(request.chain[0], app=app) if request.chain else None
    body = maybe_signature(request.chord, app=app) if ends_in is None else _body_after(ends_in)
    while body is not None:
        yield body
        body = _body_after(body)


def _body_after(canvas: Signature) -> Signature | None:
    """The body of the chord that a canvas is a member of."""
    while not canvas.options.get("chord") and isinstance(canvas, (_chain, _chord)):
        canvas = canvas.body if isinstance(canvas, _chord) else canvas.tasks[-1]
    return maybe_signature(canvas.options.get("chord"), app=app)


def _errbacks(body: Signature) -> list[Any]:
    """What is linked to a body: to a chord's own body, if it is a chord; to its members, if it is a group."""
    if own := maybe_list(body.options.get("link_error")):
        return list(own)
    if not isinstance(body, _chord):
        return []
    stands_for_group = body.body.task == "celery.accumulate"
    return _errbacks(next(iter(body.tasks)) if stands_for_group else body.body)


def install() -> None:
    """Have Celery do so. Doing it twice changes nothing."""
    if tell_bodies not in ResultBackend.failure_tellers:
        ResultBackend.failure_tellers.append(tell_bodies)
        ResultBackend.body_tellers.append(are_told)
