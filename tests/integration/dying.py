"""What a test adds to a worker: a process that dies by SIGKILL at a named point of a step's life, once a file is there.

The points are those of the table in docs/how_it_works.md.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentlink.broker.results import ResultBackend
from tasks import base
from tasks.base import BaseTask
from tasks.celery_app import App
from tasks.request import Request

NOW = Path(os.environ.get("TEST_DIE_NOW", "/nowhere"))
POINT = os.environ.get("TEST_DIE_AT", "")
#: The last part of the name of the task that dies.
STEP = os.environ.get("TEST_DIE_IN", "")


def _die(task: str | None) -> None:
    if NOW.exists() and str(task).rsplit(".", 1)[-1] == STEP:
        NOW.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def _around(owner: type, name: str, task_of: Callable[..., str | None], *, after: bool) -> None:
    method = getattr(owner, name)

    def dying(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not after:
            _die(task_of(self, *args, **kwargs))
        result = method(self, *args, **kwargs)
        if after:
            _die(task_of(self, *args, **kwargs))
        return result

    setattr(owner, name, dying)


def _of_task(self: Any, *_: Any, **__: Any) -> str | None:
    return str(self.name)


def _stores_success(self: Any, task_id: str, result: Any, state: str, *_: Any, **more: Any) -> str | None:
    return getattr(more.get("request"), "task", None) if state == "SUCCESS" else None


def _of_member(self: Any, request: Any, *_: Any, **__: Any) -> str | None:
    return str(request.task)


def _sends_next(self: App, *_: Any, **__: Any) -> str | None:
    sender = self.current_worker_task
    return sender.name if sender is not None else None


if POINT == "handed to a process":
    _around(BaseTask, "_run_once", _of_task, after=False)
elif POINT == "claimed":
    _around(BaseTask, "_begin", _of_task, after=True)
elif POINT == "its body has ended":
    body_has_ended = base.body_has_ended

    def _end_and_die(request: Any) -> None:
        _die(request.task)
        body_has_ended(request)

    base.body_has_ended = _end_and_die
elif POINT == "before it sends the next":
    _around(App, "send_task", _sends_next, after=False)
elif POINT == "before its result is stored":
    _around(ResultBackend, "_store_result", _stores_success, after=False)
elif POINT == "its result is stored":
    _around(ResultBackend, "_store_result", _stores_success, after=True)
elif POINT == "before it counts in its chord":
    _around(ResultBackend, "on_chord_part_return", _of_member, after=False)
elif POINT == "it has counted in its chord":
    _around(ResultBackend, "on_chord_part_return", _of_member, after=True)
elif POINT == "taken by a worker":
    _around(Request, "revoked", _of_task, after=False)
elif POINT == "before it is acknowledged":
    _around(Request, "acknowledge", _of_task, after=False)
elif POINT == "it is acknowledged":
    _around(Request, "acknowledge", _of_task, after=True)
