"""Celery's own events of tasks, which workers send once somebody asks for them: above a rate, of some tasks only.

Of a task that is told of all events are sent, of one that is left out none, unless it fails: then it is told of as a
whole. How many were left out is told too, see `take_left_out`.

Of `celery.events.EventDispatcher` 5.7, held by a test: `send`; of `celery.app.events.Events`: `dispatcher_cls`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from celery.app.events import Events as CeleryEvents
from celery.events import EventDispatcher

from agentlink.broker.event_log import SAMPLE
from agentlink.settings import load

#: A task that succeeds has so many events: received, started, succeeded.
_EVENTS_A_TASK = 3
_SUCCESS = "task-succeeded"
_FAILURES = frozenset({"task-failed", "task-retried", "task-revoked", "task-rejected"})
# More tasks than that are not in a worker's hand; those that went back to their queues are told of by nobody.
_KEPT = 1000


class Events(CeleryEvents):
    """Celery's `app.events`, with our dispatcher."""

    dispatcher_cls = "tasks.events:Dispatcher"


class Thinning:
    """Chooses the tasks that are told of: all, up to a rate of events a second; of those beyond, one in `SAMPLE`."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._tasks_a_second = max(1, rate // _EVENTS_A_TASK)
        self._clock = clock
        self._second, self._begun = 0, 0
        #: What was said of the tasks that are left out, as they were received.
        self._kept: dict[str, dict[str, Any]] = {}

    def leaves_out(self, kind: str, fields: dict[str, Any]) -> bool:
        """Whether an event is not to be sent."""
        task_id = fields.get("uuid", "")
        if kind != "task-received":
            if kind == _SUCCESS:
                return self._kept.pop(task_id, None) is not None
            return task_id in self._kept
        second = int(self._clock())
        if second != self._second:
            self._second, self._begun = second, 0
        self._begun += 1
        if self._begun <= self._tasks_a_second or self._begun % SAMPLE == 0:
            return False
        self._kept[task_id] = fields
        if len(self._kept) > _KEPT:
            self._kept.pop(next(iter(self._kept)))
        return True

    def forget(self, task_id: str) -> dict[str, Any] | None:
        """What was said of a task that was left out, which it is no longer."""
        return self._kept.pop(task_id, None)


class Dispatcher(EventDispatcher):
    """Celery's; it leaves out what is too much."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._thinning = Thinning(load().events_rate)

    def send(self, type: str, *args: Any, **fields: Any) -> Any:  # noqa: A002 - Celery's name for it
        """Send an event, unless it is of a task that is left out."""
        if type.startswith("task-") and self.enabled:
            if self.groups and "task" not in self.groups:  # nobody has asked for them
                return None
            if type in _FAILURES and (received := self._thinning.forget(fields.get("uuid", ""))) is not None:
                super().send("task-received", **received)
                _count("task-received", -1)
            elif self._thinning.leaves_out(type, fields):
                _count(type, 1)
                return None
        return super().send(type, *args, **fields)


_left_out: Counter[str] = Counter()
_lock = threading.Lock()


def take_left_out() -> dict[str, int]:
    """How many events of each kind this process has left out since this was last asked."""
    with _lock:
        taken = {kind: number for kind, number in _left_out.items() if number > 0}
        _left_out.clear()
    return taken


def _count(kind: str, number: int) -> None:
    with _lock:
        _left_out[kind] += number
