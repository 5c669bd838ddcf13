"""Runs that were cancelled, kept in the broker, and how a worker ends what it runs of them: it is asked, then killed.

Each worker looks a few times a second, so that a cancellation reaches workers that were away when it was made. Steps
that have not begun are refused as they begin; this is for those that have.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterable
from typing import Any

import redis
from celery import Celery
from celery.worker import state

from agentlink.broker import chores
from agentlink.broker.chores import Chore
from agentlink.settings import load

logger = logging.getLogger(__name__)

#: The runs' ids by the time they were cancelled (seconds since 1970).
CANCELLED_KEY = "agentlink:cancelled"
#: The message header that tells a step its run.
RUN_HEADER = "agentlink_run"

_LOOK_EVERY_S = 0.25


def install(app: Celery) -> None:
    """Have every worker of `app` end what was cancelled. Doing it twice changes nothing."""
    chores.add(app, _canceller)


def _canceller(app: Celery) -> Chore:
    grace_s = load().cancel_grace_s

    def look() -> float:
        # The main thread adds to the set of requests meanwhile: the next look is soon.
        with contextlib.suppress(RuntimeError):
            end_cancelled(app.backend.client, list(state.active_requests), grace_s)
        return _LOOK_EVERY_S

    return Chore(name="ending what was cancelled", first_in_s=_LOOK_EVERY_S, do=look)


def was_cancelled(client: redis.Redis, request: Any) -> bool:
    """Whether the run of a task's request was cancelled."""
    run_id = getattr(request, RUN_HEADER, None) or request.id
    return client.zscore(CANCELLED_KEY, run_id) is not None


def end_cancelled(client: redis.Redis, requests: Iterable[Any], grace_s: float) -> None:
    """Of these running tasks, ask those of cancelled runs to end, and kill those that were asked so long ago.

    They are asked with SIGUSR1, at which their `finally` runs. Those that have just begun are left for the next look:
    most are refused at once, and their processes would be at another run's task when the signal comes. Nor is the
    broker asked for short ones, then.
    """
    settled = time.time() - _LOOK_EVERY_S
    in_processes = [
        request
        for request in requests
        if request.worker_pid not in (None, os.getpid()) and (request.time_start or settled) <= settled
    ]
    runs = [request.request_dict.get(RUN_HEADER) or request.id for request in in_processes]
    cancelled = client.zmscore(CANCELLED_KEY, runs) if runs else []
    now = time.monotonic()
    for request, cancelled_at in zip(in_processes, cancelled, strict=True):
        if cancelled_at is None:
            continue
        if request.kill_at is None:
            logger.info("task %s is asked to end: its run was cancelled", request.id)
            request.kill_at = now + grace_s
            _signal(request.worker_pid, signal.SIGUSR1)
        elif now >= request.kill_at:
            logger.warning("task %s did not end in %.1f s after it was asked to: it is killed", request.id, grace_s)
            request.kill_at = now + grace_s
            _signal(request.worker_pid, signal.SIGKILL)


def _signal(pid: int, signum: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)
