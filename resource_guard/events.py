"""What the guard does, told to whoever listens to Celery's events: `guard-paused`, `guard-resumed`, `guard-level`,
`guard-evicted`.

Things happen in the guard's thread and are noted there; the thread of the event loop sends them, as it does all events.
Fields are flat, with units in their names; `at_s` is when it happened, in seconds since 1970, and `timestamp`, Celery's
own, when that was told. None is named like one of Celery's: an event with such a field could not be sent.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from resource_guard.gate import Started
from resource_guard.observation import Change, Reading, Resource
from resource_guard.valve import Position

logger = logging.getLogger(__name__)

#: The part of their names that Celery's dispatchers know them by.
GROUP = "guard"
# While nothing can be sent, no more than these are kept, the latest.
_KEPT = 256

_UNITS = {Resource.CPU: "fraction", Resource.PROCESSES: "count"}


class Events:
    """Notes what happens, in any thread, and sends it later. Neither ever fails."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._noted: deque[tuple[str, dict[str, Any]]] = deque(maxlen=_KEPT)
        self._untaken: deque[tuple[str, dict[str, Any]]] = deque(maxlen=_KEPT)
        self._failed = False

    def turned(self, position: Position, paused_s: float) -> None:
        """The valve was closed, or opened after it had been closed for so long."""
        if position.is_open:
            self._note("guard-resumed", reason=position.reason, paused_s=round(paused_s, 3))
        else:
            self._note("guard-paused", reason=position.reason)

    def changed(self, change: Change, reading: Reading | None) -> None:
        """A resource went from one level to another; its reading, unless it is watched no more."""
        fields: dict[str, Any] = {}
        if reading is not None:
            unit = "count" if reading.unit else _UNITS.get(change.resource, "bytes")
            fields = {f"value_{unit}": reading.value, f"limit_{unit}": reading.limit, "where": reading.where}
        before, after = change.before.name.lower(), change.after.name.lower()
        self._note(
            "guard-level", resource=change.resource.value, before=before, after=after, reason=change.reason, **fields
        )

    def evicted(self, one: Started, why: str) -> None:
        """A task was ended: it runs again with `next_bytes` reserved for it, or has failed if that is None."""
        ended = one.request.ended
        self._note(
            "guard-evicted",
            task_id=one.request.id,
            task_name=one.request.name,
            reason=why,
            used_bytes=ended.used_bytes if ended else one.peak_bytes,  # by now it takes nothing any more
            reserved_bytes=one.reserved.memory_bytes,
            allowed_bytes=ended.allowed_bytes if ended else one.cap_bytes,
            next_bytes=ended.reserve_bytes if ended else None,
        )

    def send(self, dispatcher: Any) -> None:
        """In the thread of the event loop: send what has been noted."""
        try:
            while self._noted:
                name, fields = self._noted.popleft()
                dispatcher.send(name, **fields)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no reason to end a worker
            if not self._failed:
                self._failed = True
                logger.warning("an event of the guard was not sent: %r (said once)", error)

    def take(self) -> list[tuple[str, dict[str, Any]]]:
        """What has been noted since this was last called: for whoever keeps it. The latest, where that is long ago."""
        return [self._untaken.popleft() for _ in range(len(self._untaken))]

    def give_back(self, events: list[tuple[str, dict[str, Any]]]) -> None:
        """What was taken could not be kept: it is taken again."""
        self._untaken.extendleft(reversed(events))

    def _note(self, name: str, **fields: Any) -> None:
        event = (name, {"at_s": round(self._clock(), 3), **fields})
        self._noted.append(event)
        self._untaken.append(event)


def let_through(dispatcher: Any) -> None:
    """Have a worker's dispatcher send them also when nobody has asked for events of tasks, as it sends its heartbeats.

    Checked with Celery 5.7: an event is dropped if there are groups and its own is not among them.
    """
    if dispatcher.groups:
        dispatcher.groups.add(GROUP)
