"""Readings of memory: this worker's process tree, and what the machine has left.

On Linux `/proc` is read directly: psutil's `children(recursive=True)` scans every process of the machine, which takes
2.4 ms where `/proc/PID/task/TID/children` takes 0.014 ms. Elsewhere psutil does it.

Not seen: a container's own limit, and processes that left the tree because their parent ended before them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from resource_guard.errors import SensorError
from resource_guard.observation import Observation

# An exact reading takes about 22 ms for each GB in use. These are the shares of one core that such readings may take:
# where they decide something, and where they only inform.
DECISIVE_SHARE = 0.01
INFORMATIVE_SHARE = 0.002


class Sensor(Protocol):
    """Something that can be asked for an observation at any time, from one thread."""

    def observe(self, at: float) -> Observation:
        """The readings of now, stamped with `at`.

        Raises:
            SensorError: there is nothing to decide on.
        """


def memory_sensor(root_pid: int, *, exact_above_bytes: int) -> Sensor:
    """The cheapest sensor that works on this machine."""
    # The file needs Linux with CONFIG_PROC_CHILDREN, which a few kernels are built without.
    if Path(f"/proc/{root_pid}/task/{root_pid}/children").exists():
        return MemorySensor(root_pid, exact_above_bytes=exact_above_bytes)
    return PsutilMemorySensor(root_pid)


@dataclass(frozen=True, kw_only=True)
class _ExactReading:
    at: float
    cost_s: float
    rss_bytes: int
    pss_bytes: int


class MemorySensor:
    """Reads Linux's `/proc`; `proc` is an argument so that tests can make a tree of their own.

    Forked children share pages with their parent, and the sum of their RSS counts those once for each: 2.6 times too
    much was seen with eight children. PSS counts them once but is a hundred times dearer to read. So PSS is read only
    now and then; in between the answer is the last PSS plus what the sum of RSS has changed since, at most that sum.
    `exact_above_bytes` is where precision matters: while the sum of RSS, which is never less than the truth, is below
    it, PSS is read five times less often.
    """

    def __init__(self, root_pid: int, proc: Path = Path("/proc"), *, exact_above_bytes: int = 0) -> None:
        self._root_pid = root_pid
        self._proc = str(proc)
        self._exact_above_bytes = exact_above_bytes
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._exact: _ExactReading | None = None

    def observe(self, at: float) -> Observation:
        """The readings of now; a process that ends meanwhile, or can't be read, is left out."""
        return Observation(at=at, tree_bytes=self._tree_bytes(at), available_bytes=self._available_bytes())

    def _available_bytes(self) -> int:
        try:
            text = self._read("meminfo")
        except OSError as error:
            raise SensorError("available memory", str(error)) from error
        available = _kilobytes(text, b"MemAvailable:")
        if available is None:
            raise SensorError("available memory", f"{self._proc}/meminfo has no MemAvailable")
        return available

    def _tree_bytes(self, at: float) -> int:
        rss_by_pid = {pid: rss for pid in self._tree() if (rss := self._rss_bytes(pid)) is not None}
        if self._root_pid not in rss_by_pid:
            raise SensorError("memory of this worker's processes", f"{self._proc}/{self._root_pid}/statm is unreadable")
        rss_bytes = sum(rss_by_pid.values())
        share = DECISIVE_SHARE if rss_bytes > self._exact_above_bytes else INFORMATIVE_SHARE
        if self._exact is None or at >= self._exact.at + self._exact.cost_s / share:
            self._exact = self._read_exactly(rss_by_pid, at)
        return min(rss_bytes, max(0, self._exact.pss_bytes + rss_bytes - self._exact.rss_bytes))

    def _read_exactly(self, rss_by_pid: dict[int, int], at: float) -> _ExactReading:
        started = time.perf_counter()
        pss_bytes = sum(self._pss_bytes(pid, rss) for pid, rss in rss_by_pid.items())
        cost_s = time.perf_counter() - started
        return _ExactReading(at=at, cost_s=cost_s, rss_bytes=sum(rss_by_pid.values()), pss_bytes=pss_bytes)

    def _tree(self) -> set[int]:
        tree: set[int] = set()
        pending = [self._root_pid]
        while pending:
            pid = pending.pop()
            if pid not in tree:
                tree.add(pid)
                pending += self._children(pid)
        return tree

    def _children(self, pid: int) -> Iterable[int]:
        # Each thread lists only the children that it has started itself.
        children: list[int] = []
        try:
            for thread in os.listdir(f"{self._proc}/{pid}/task"):  # noqa: PTH208 - ten times a second, and six times faster
                children += map(int, self._read(f"{pid}/task/{thread}/children").split())
        except OSError:
            pass  # the thread or the process has ended
        return children

    def _rss_bytes(self, pid: int) -> int | None:
        try:
            return int(self._read(f"{pid}/statm").split()[1]) * self._page_bytes
        except (OSError, IndexError, ValueError):
            return None

    def _pss_bytes(self, pid: int, otherwise: int) -> int:
        # Unreadable for another user's process, and empty for one that has just ended.
        try:
            pss_bytes = _kilobytes(self._read(f"{pid}/smaps_rollup"), b"Pss:")
        except OSError:
            return otherwise
        return otherwise if pss_bytes is None else pss_bytes

    def _read(self, name: str) -> bytes:
        with open(f"{self._proc}/{name}", "rb", buffering=0) as file:  # noqa: PTH123 - as above
            return file.read()


class PsutilMemorySensor:
    """Reads through psutil, where there is no `/proc`; RSS only, so shared pages count once for each process."""

    def __init__(self, root_pid: int) -> None:
        self._root_pid = root_pid

    def observe(self, at: float) -> Observation:
        """The readings of now; a process that ends meanwhile, or can't be read, is left out."""
        try:
            root = psutil.Process(self._root_pid)
            tree_bytes = root.memory_info().rss + sum(map(self._rss_bytes, root.children(recursive=True)))
            available_bytes = psutil.virtual_memory().available
        except (psutil.Error, OSError) as error:
            raise SensorError("memory", str(error)) from error
        return Observation(at=at, tree_bytes=tree_bytes, available_bytes=available_bytes)

    @staticmethod
    def _rss_bytes(process: psutil.Process) -> int:
        try:
            return process.memory_info().rss
        except psutil.Error:
            return 0


def _kilobytes(text: bytes, name: bytes) -> int | None:
    """The bytes in the line `name   123 kB`."""
    for line in text.splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return None
