"""What runs here, asked by commands that start nothing: the broker, and the guards of the workers."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import redis
from kombu.exceptions import OperationalError

from agentlink.broker import server
from agentlink.broker.errors import BrokerNotRunning
from agentlink.settings import Settings
from tasks import app

#: How long workers get to answer. One whose main process hangs does not.
ASK_S = 1.0

Guards = dict[str, dict[str, Any] | None]


@contextlib.contextmanager
def broker(settings: Settings) -> Iterator[redis.Redis]:
    """A client of the broker that runs.

    Raises:
        BrokerNotRunning: none does, or it went away meanwhile.
    """
    if settings.embedded and not server.is_running(settings):  # Celery's client would wait for an answer for long
        pid = server.holder(settings)
        hangs = f"pid {pid} does not answer; its log is {server.log_path(settings)}"
        raise BrokerNotRunning(settings.shown_url, hangs if pid else "it is not running; `agentlink up` starts it")
    try:
        yield app.backend.client
    except (redis.RedisError, OperationalError) as error:
        raise BrokerNotRunning(settings.shown_url, str(error)) from error


def guards(of: Collection[str] | None = None, *, expected: int | None = None) -> Guards:
    """What the guard of each worker says, by the worker's name; None of one that has no guard.

    All workers are asked, or those named. Waits for `ASK_S`, or until as many as expected (all of those named) have
    answered.
    """
    destination, limit = (None, expected) if of is None else (list(of), len(of))
    try:
        answers = app.control.broadcast(
            "guard", destination=destination, reply=True, timeout=ASK_S, limit=limit or None
        )
    except OSError as error:  # a connection that breaks while answers come
        raise OperationalError(str(error)) from error
    return {
        name: None if "error" in guard or guard["state"] == "off" else guard
        for answer in sorted(answers or [], key=min)
        for name, guard in answer.items()
    }
