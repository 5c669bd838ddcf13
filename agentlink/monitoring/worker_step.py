"""How monitoring reaches a Celery worker."""

from __future__ import annotations

from typing import Any

from celery import Celery, bootsteps, signals

from agentlink.broker import chores
from agentlink.broker.chores import Chore
from agentlink.monitoring.status import WorkerStatus
from agentlink.monitoring.watching import Watch

# Until the worker has started.
_AGAIN_S = 0.1


def install(app: Celery) -> None:
    """Have every worker of `app` do its part. Doing it twice changes nothing."""
    app.steps["worker"].add(WatchStep)
    chores.add(app, _watcher)


class WatchStep(bootsteps.StartStopStep):
    """Has a worker tell of itself from its start to its end, in the thread of its chores."""

    requires = ("celery.worker.components:Pool",)

    def start(self, worker: Any) -> None:
        """After the guard was made."""
        worker.app.watch = Watch(worker.app, WorkerStatus(worker), getattr(worker, "guard_events", None))
        signals.worker_shutdown.connect(self._count_last)

    def stop(self, worker: Any) -> None:
        """The worker takes nothing more; what it runs may take a while."""
        worker.app.watch.end()

    terminate = stop

    def _count_last(self, sender: Any, **_: Any) -> None:
        sender.app.watch.count_last()


def _watcher(app: Celery) -> Chore:
    import celery.app.events  # noqa: F401 - here, before there are processes: none is made while a thread imports

    def look() -> float:
        watch: Watch | None = getattr(app, "watch", None)
        return watch.look() if watch is not None else _AGAIN_S

    return Chore(name="monitoring", first_in_s=_AGAIN_S, do=look)
