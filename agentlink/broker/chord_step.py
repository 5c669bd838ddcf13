"""How the watch over chords reaches a Celery worker: a thread of its main process. One looks at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import redis
from celery import Celery, bootsteps

from agentlink.broker import sweep_step
from agentlink.broker.chords import QUIET_S, ChordWatch

logger = logging.getLogger(__name__)

_TURN_KEY = "agentlink:chords:turn"


def install(app: Celery) -> None:
    """Have every worker of `app` watch. Doing it twice changes nothing."""
    app.steps["worker"].add(ChordStep)


class ChordStep(bootsteps.StartStopStep):
    """Watches from the start of the worker to its end."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._ending = threading.Event()

    def start(self, worker: Any) -> None:
        """After the pool has its processes."""
        threading.Thread(target=self._keep, args=(worker.app,), name="chord watch", daemon=True).start()

    def stop(self, worker: Any) -> None:
        """What it has begun is soon done, and the thread ends with the process."""
        self._ending.set()

    terminate = stop

    def _keep(self, app: Celery) -> None:
        while not self._ending.wait(QUIET_S):
            try:
                # Not quite so long: whoever comes next is due.
                if app.backend.client.set(_TURN_KEY, "", nx=True, px=int(QUIET_S * 900)):
                    ChordWatch(app.backend, lambda run_ids: _goes_on(app, run_ids)).look(time.time())
            except (redis.RedisError, OSError) as error:
                logger.info("chords are not looked at this time: %s", error)
            except Exception:
                logger.exception("chords are not looked at this time")


def _goes_on(app: Celery, run_ids: Sequence[str]) -> dict[str, bool]:
    known: dict[str, bool] = {}
    for lookup in sweep_step.lookups:
        known |= lookup(app.backend.client, run_ids)
    return known
