"""CPU time of a process tree whose processes come and go: pure bookkeeping over what has been read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from resource_guard.process_tree import Process

#: The CPU's use is the mean over so long.
MEAN_S = 10.0
#: Before that has passed, over what has, but no less than this: a first reading must not be noise.
MEAN_LEAST_S = 1.0


class CpuUse:
    """How many cores a tree uses, and has used, with the time of processes that have ended.

    The kernel books the time of a process that has ended to the one that waited for it, so the sum over a tree never
    falls, except when a process leaves it unnoticed: orphaned, or ended with nobody waiting. What was known of those is
    kept.
    """

    def __init__(self, machine_cores: int) -> None:
        self._machine_cores = machine_cores
        self._last: dict[tuple[int, int], float] = {}
        self._last_ended: dict[tuple[int, int], float] = {}
        #: CPU time used since the first look.
        self.total_s = 0.0
        self._past: deque[tuple[float, float]] = deque()

    def add(self, at: float, processes: Iterable[Process]) -> float:
        """The mean number of cores used, after a look at all processes of the tree."""
        now: dict[tuple[int, int], float] = {}
        ended: dict[tuple[int, int], float] = {}
        for process in processes:
            key = (process.pid, process.started)
            ended[key] = process.ended_cpu_s
            now[key] = process.cpu_s + process.ended_cpu_s
        if self._past:
            gone_s = sum(used_s for key, used_s in self._last.items() if key not in now)
            booked_s = sum(used_s - self._last_ended.get(key, 0.0) for key, used_s in ended.items())
            used_s = sum(now.values()) - sum(self._last.values()) + max(0.0, gone_s - booked_s)
            # More can't be: then a process has come into the tree that was used elsewhere, or was overlooked once.
            most_s = (at - self._past[-1][0]) * self._machine_cores
            self.total_s += min(max(0.0, used_s), most_s)
        self._last, self._last_ended = now, ended
        return self._mean(at)

    def _mean(self, at: float) -> float:
        self._past.append((at, self.total_s))
        while len(self._past) > 1 and self._past[1][0] <= at - MEAN_S:
            self._past.popleft()
        since, total_s = self._past[0]
        return (self.total_s - total_s) / max(MEAN_LEAST_S, at - since)
