"""Readings through psutil, where there is no `/proc`: memory only."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import psutil

from resource_guard.errors import SensorError
from resource_guard.limits import Limits
from resource_guard.observation import Observation, Reading, Resource


class PsutilMemorySensor:
    """Sums RSS, so pages that processes share count once for each."""

    def __init__(self, limits_of: Callable[[], Limits], root_pids: Sequence[int]) -> None:
        self._limits_of = limits_of
        self._root_pids = root_pids
        self.cores = float(os.cpu_count() or 1)

    def observe(self, at: float) -> Observation:
        """The readings of now; a process that ends meanwhile, or can't be read, is left out."""
        limits = self._limits_of()
        try:
            machine = psutil.virtual_memory()
            tree = {child.pid: child for pid in self._root_pids for child in _with_descendants(pid)}
        except (psutil.Error, OSError) as error:
            raise SensorError("memory", str(error)) from error
        if not tree:
            raise SensorError("memory of this worker's processes", "none of them is there")
        return Observation(
            at=at,
            readings={
                Resource.MEMORY: Reading(
                    value=sum(map(_rss_bytes, tree.values())), limit=min(limits.memory_bytes, machine.total)
                ),
                Resource.MEMORY_FREE: Reading(value=machine.available, limit=limits.memory_free_bytes, floor=True),
                Resource.PROCESSES: Reading(value=len(tree), limit=limits.processes),
            },
        )

    def close(self) -> None:
        """Nothing is kept open."""


def _with_descendants(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _rss_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0
