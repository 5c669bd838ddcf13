"""A call's large arguments are put into files before its message is made."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from kombu.utils.uuid import uuid

from agentlink.broker.arguments import ARGUMENTS_HEADER, Claims, Seen, belong, delay_s, held
from agentlink.broker.calls import ALSO, Command, current_bundle, current_call
from agentlink.broker.errors import ArgumentNotStored
from agentlink.broker.stored import SEEN
from agentlink.settings import load
from resource_guard.errors import StorageError
from resource_guard.large_values import Reference

if TYPE_CHECKING:
    from tasks.celery_app import App


def put_away(app: App, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    """A call's arguments as they are to travel; and change what its options have of what comes after the task.

    Raises:
        ArgumentNotStored: one can't be stored; nothing of the call is queued. Where that is for want of room, a task
            waits for a while.
    """

    def keep(value: Any) -> Reference:
        return _keep(app, name, value)

    sender = app.current_worker_task
    since_body = getattr(sender.request, SEEN, None) if sender is not None else None
    claims = Claims(keep, _seen(since_body), load().results_inline_bytes, singly=since_body is None)
    if isinstance(args, (list, tuple)):
        args = claims.values(args)
    if isinstance(kwargs, dict):
        kwargs = claims.named(kwargs)
    options |= claims.after(options)
    headers = options.get("headers") or {}
    if claims.found:
        options["headers"] = headers | {ARGUMENTS_HEADER: list(claims.found)}
        options["task_id"] = options.get("task_id") or uuid()
        options[ALSO] = [*options.get(ALSO, ()), *_belonging(app, name, list(claims.found), sender, options)]
    elif ARGUMENTS_HEADER in headers:  # a retry with others
        options["headers"] = {key: value for key, value in headers.items() if key != ARGUMENTS_HEADER}
    return args, kwargs


def _keep(app: App, name: str, value: Any) -> Reference:
    begun_at = time.monotonic()
    try:
        reference: Reference = app.backend.patiently(app.backend.arguments.put, value)
    except (OSError, StorageError) as error:
        raise ArgumentNotStored(name, str(error)) from error
    if (call := current_call.get()) is not None:  # the broker has kept nobody waiting meanwhile
        call.ends_at += time.monotonic() - begun_at
    return reference


def _seen(since_body: Seen | None) -> Seen:
    """What was stored where no code of a user's has run since: after a task's body, or among calls sent together."""
    if since_body is not None:
        return since_body
    bundle = current_bundle.get()
    return bundle.seen if bundle is not None else {}


def _belonging(app: App, name: str, digests: list[str], sender: Any, options: dict[str, Any]) -> list[Command]:
    """What holds the files until the call's run, or the task itself, has ended."""
    task_id: str = options["task_id"]
    root_id = options.get("root_id") or (sender and (sender.request.root_id or sender.request.id)) or task_id
    run_id = options["headers"].get("agentlink_run")
    ids = sorted({root_id, run_id or task_id})
    bundle = current_bundle.get()
    if run_id and bundle is not None:  # one step in which all of a run's messages go, or several in this order
        digests = [digest for digest in digests if (digest, *ids) not in bundle.bound]
        bundle.bound |= {(digest, *ids) for digest in digests}
    commands = belong(digests, ids)
    if not run_id and not getattr(app.tasks.get(name), "builds_canvas", False):
        commands.append(held(task_id, 2 * load().keep_results_s + delay_s(options)))
    return commands


def body_has_ended(request: Any) -> None:
    """From now on no code of the user's runs until the task's result is stored."""
    setattr(request, SEEN, {})
