"""How schedules reach a Celery worker: a thread of its main process."""

from __future__ import annotations

import logging
import threading
from typing import Any

import redis
from celery import Celery, bootsteps

from agentlink.broker.errors import BrokerUnavailable
from workflows.firing import Firer

logger = logging.getLogger(__name__)

_AWAY_S = 1.0


def install(app: Celery) -> None:
    """Have every worker of `app` fire schedules. Doing it twice changes nothing."""
    app.steps["worker"].add(ScheduleStep)


class ScheduleStep(bootsteps.StartStopStep):
    """Fires schedules from the start of the worker to its end."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        # Here, before there are processes: what sending a message imports, so that none is made while a thread does.
        import celery.app.events  # noqa: F401

        self._firer = Firer(lambda: worker.app.backend.client)
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, worker: Any) -> None:
        """After the pool has its processes."""
        self._thread = threading.Thread(target=self._keep, name="schedules", daemon=True)
        self._thread.start()

    def stop(self, worker: Any) -> None:
        """A run that is being started is, or is not: the broker decides."""
        self._ending.set()

    terminate = stop

    def _keep(self) -> None:
        pause_s = 0.0
        while not self._ending.wait(pause_s):
            pause_s = _AWAY_S
            try:
                pause_s = self._firer.look()
            except (BrokerUnavailable, redis.RedisError, OSError) as error:
                logger.info("schedules wait for the broker: %s", error)
            except Exception:
                logger.exception("schedules were not looked at this time")
