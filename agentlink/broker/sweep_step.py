"""How sweeping reaches a Celery worker: a thread of its main process. Callers import this too, and none of the rest."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import redis
from celery import Celery, bootsteps

from agentlink.settings import load

logger = logging.getLogger(__name__)

#: Tells, of some runs, those that are known, and whether each of them goes on. Whoever keeps runs adds to `lookups`.
Lookup = Callable[[redis.Redis, Sequence[str]], Mapping[str, bool]]
lookups: list[Lookup] = []


def install(app: Celery) -> None:
    """Have every worker of `app` sweep. Doing it twice changes nothing."""
    app.steps["worker"].add(SweepStep)


class SweepStep(bootsteps.StartStopStep):
    """Sweeps from the start of the worker to its end."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        # Here, before there are processes: they share what it imports, and none is made while a thread imports it.
        from agentlink.broker.sweeping import Sweeper

        self._sweeper = Sweeper(load(), lambda: worker.app.backend.client, lookups)
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, worker: Any) -> None:
        """After the pool has its processes."""
        self._thread = threading.Thread(target=self._keep, name="sweeper", daemon=True)
        self._thread.start()

    def stop(self, worker: Any) -> None:
        """Not in the middle of a sweep: what it has begun is soon done, and the thread ends with the process."""
        self._ending.set()

    terminate = stop

    def _keep(self) -> None:
        while not self._ending.wait(self._sweeper.every_s):
            try:
                self._sweeper.sweep_in_turn()
            except (redis.RedisError, OSError) as error:
                logger.info("not swept this time: %s", error)
            except Exception:
                logger.exception("not swept this time")
