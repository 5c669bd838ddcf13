"""Has memory back that nobody uses: the worker's own, and that of idle processes which have grown fat.

Before anybody's work is ended for it, and so that a pause ends which only such memory keeps up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from agentlink.units import format_size
from resource_guard.actions import TreeEnding
from resource_guard.reclaim import fat, give_back_own

logger = logging.getLogger(__name__)

# The worker's own memory takes a while to grow again.
_OWN_AGAIN_S = 60.0


class Reclaimer:
    """`look` is for the guard's thread, `attend` for the one that writes tasks to processes, as `take_out` is."""

    def __init__(self, take_out: Callable[[int], TreeEnding | None]) -> None:
        self._take_out = take_out
        self._fat: list[int] = []
        self._endings: list[TreeEnding] = []
        self._own_at = float("-inf")
        self.replaced = 0

    @property
    def wants_out(self) -> bool:
        """Whether a process is to be taken out: `attend` has something to do."""
        return bool(self._fat)

    def look(self, idle_bytes: Mapping[int, int], fresh_bytes: int, *, tight: bool, at: float) -> None:
        """Go on; while memory is `tight`, find out which idle processes hold much more than a new one."""
        self._endings = [ending for ending in self._endings if ending.step(at) is None]
        self._fat = []
        if not tight:
            return
        if at >= self._own_at + _OWN_AGAIN_S:
            self._own_at = at
            if given_back := give_back_own():
                logger.info("gave back %s of the worker's own memory", format_size(given_back))
        leaving = {ending.pid for ending in self._endings}
        self._fat = [pid for pid in fat(idle_bytes, fresh_bytes) if pid not in leaving]

    def attend(self) -> None:
        """Replace who has been found."""
        found, self._fat = self._fat, []
        for pid in found:
            ending = self._take_out(pid)
            if ending is not None:
                self.replaced += 1
                logger.info("idle process %d has kept memory of tasks long done; a new one takes its place", pid)
                self._endings.append(ending)
