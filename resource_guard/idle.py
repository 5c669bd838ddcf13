"""What each pool process holds without its task, from looks that come too seldom to see it idle between any two.

Plain data, no clock. Where it is not known it is taken to be more rather than less: a task must not be ended for what
the one before it has left behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from resource_guard.observation import ProcessUse


class IdleSizes:
    """Told of each look; sizes are in bytes. `told` is what processes have said themselves after a task, by pid."""

    def __init__(self, told: Mapping[int, int] = MappingProxyType({})) -> None:
        self._told = told
        #: The least that an idle process was ever seen to hold.
        self.fresh_bytes = 0
        # The most that one held when it was first seen: a fork of a worker that has grown holds more.
        self._new_bytes = 0
        self._held: dict[int, int] = {}
        self._last: dict[int, tuple[int, int | None]] = {}

    def look(self, children: Mapping[int, ProcessUse], tasks: Mapping[int, int]) -> None:
        """`tasks` says which task each busy process runs, by pid."""
        for pid in self._held.keys() - children.keys():
            del self._held[pid], self._last[pid]
        for pid, child in children.items():
            task = tasks.get(pid)
            if task is None:
                self.fresh_bytes = min(self.fresh_bytes or child.rss_bytes, child.rss_bytes)
                if pid not in self._last:
                    self._new_bytes = max(self._new_bytes, child.rss_bytes)
            self._held[pid] = self._held_by(pid, child.rss_bytes, task)
            self._last[pid] = child.rss_bytes, task

    def of(self, pid: int) -> int:
        """What a process holds without its task."""
        return self._held.get(pid, self._new_bytes)

    def idle(self, tasks: Mapping[int, int]) -> dict[int, int]:
        """What those hold that run none."""
        return {pid: held_bytes for pid, held_bytes in self._held.items() if pid not in tasks}

    def _held_by(self, pid: int, rss_bytes: int, task: int | None) -> int:
        if task is None:
            return rss_bytes
        if pid not in self._last:
            return min(rss_bytes, self._new_bytes)
        last_bytes, last_task = self._last[pid]
        if last_task not in (None, task):
            # One task followed the other at once: what was there before and still is may be the first one's.
            return min(rss_bytes, self._told.get(pid, last_bytes))
        return min(self._held[pid], rss_bytes)
