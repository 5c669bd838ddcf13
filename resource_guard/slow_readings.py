"""Readings that may take long: disks, the data that AgentLink keeps, the broker's memory.

A thread of its own takes them, so a disk or a broker that hangs never keeps the guard from looking at memory; what has
not been read for a while is left out.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from resource_guard.limits import Limits
from resource_guard.observation import Reading, Resource

LOOK_S = 1.0
#: What was read longer ago is not known any more.
STALE_S = 10.0
#: AgentLink's data is added up so often, or less if that would take more than 1 % of one core.
QUOTA_S = 30.0
_QUOTA_SHARE = 0.01
# So long it works at a time, and so long it leaves the interpreter to others.
_SLICE_S = 0.002
_BREAK_S = 0.02
# Of a disk's inodes this share must stay free, or the share of its bytes if that is less.
_INODES_FREE_FRACTION = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class _Disk:
    path: Path
    free_bytes: int
    total_bytes: int
    free_inodes: int
    #: 0 where a file system has no fixed number of them.
    total_inodes: int


class SlowReadings:
    """Takes readings from a first call of `readings` to `close`."""

    def __init__(
        self,
        limits_of: Callable[[], Limits],
        *,
        data_paths: Iterable[Path],
        home: Path,
        broker: Callable[[], tuple[int, int] | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits_of = limits_of
        self._data_paths = tuple(data_paths)
        self._home = home
        self._broker = broker
        self._clock = clock
        self._looked_at = -float("inf")
        self._disks: list[_Disk] = []
        self._broker_memory: tuple[int, int] | None = None
        self._kept_bytes: int | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def readings(self) -> dict[Resource, Reading]:
        """The last of each; never waits, but for a first look at the disks."""
        if self._thread is None:
            self._look_at_disks()
            self._looked_at = self._clock()
            self._closing = threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=[self._closing], name="resource-guard-slow", daemon=True
            )
            self._thread.start()
        if self._clock() - self._looked_at > STALE_S:
            return {}
        limits = self._limits_of()
        readings: dict[Resource, Reading] = {}
        free = [reading for disk in self._disks for reading in _free(disk, limits)]
        if free:
            readings[Resource.DISK_FREE] = max(free, key=lambda reading: reading.fraction)
        if self._kept_bytes is not None:
            readings[Resource.DISK_QUOTA] = Reading(
                value=self._kept_bytes, limit=limits.disk_quota_bytes, where=str(self._home)
            )
        if self._broker_memory is not None:
            used_bytes, most_bytes = self._broker_memory
            readings[Resource.BROKER_MEMORY] = Reading(value=used_bytes, limit=most_bytes)
        return readings

    def close(self) -> None:
        """Stop; what hangs is left to itself."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout=LOOK_S)
            self._thread = None

    def _run(self, closing: threading.Event) -> None:
        walk: Iterator[int] | None = None
        kept_bytes, cost_s, walk_at, look_at = 0, 0.0, self._clock(), self._clock()
        while not closing.wait(_BREAK_S if walk else LOOK_S / 2):
            now = self._clock()
            if now >= look_at:
                look_at = now + LOOK_S
                self._look()
            if walk is None and now >= walk_at and Resource.DISK_QUOTA in self._limits_of().marks:
                walk, kept_bytes, cost_s = sizes_below(self._home), 0, 0.0
            if walk is None:
                continue
            more_bytes, slice_s, ended = _add_up(walk)
            kept_bytes, cost_s = kept_bytes + more_bytes, cost_s + slice_s
            if ended:
                walk, self._kept_bytes = None, kept_bytes
                walk_at = now + max(QUOTA_S, cost_s / _QUOTA_SHARE)

    def _look(self) -> None:
        self._look_at_disks()
        try:
            self._broker_memory = self._broker()
        except Exception:  # noqa: BLE001 - whatever it is, this time the broker can't be read
            self._broker_memory = None
        if self._broker_memory is not None and self._broker_memory[1] <= 0:
            self._broker_memory = None  # a broker without a limit
        self._looked_at = self._clock()

    def _look_at_disks(self) -> None:
        self._disks = [disk for path in self._data_paths if (disk := _disk(path)) is not None]


def sizes_below(folder: Path) -> Iterator[int]:
    """The bytes that each file below takes on its disk; one that can't be read, or has gone, is left out."""
    pending = [str(folder)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    else:
                        yield _disk_bytes(entry)
        except OSError:
            continue


def _disk_bytes(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_blocks * 512
    except OSError:
        return 0


def _add_up(sizes: Iterator[int]) -> tuple[int, float, bool]:
    """The sum of as many as fit into a slice of time, how long that took, and whether those were the last."""
    total_bytes, began_s = 0, time.perf_counter()
    for size_bytes in sizes:
        total_bytes += size_bytes
        if (took_s := time.perf_counter() - began_s) > _SLICE_S:
            return total_bytes, took_s, False
    return total_bytes, time.perf_counter() - began_s, True


def _disk(path: Path) -> _Disk | None:
    try:
        disk = os.statvfs(path)
    except OSError:
        return None
    return _Disk(
        path=path,
        free_bytes=disk.f_bavail * disk.f_frsize,
        total_bytes=disk.f_blocks * disk.f_frsize,
        free_inodes=disk.f_favail,
        total_inodes=disk.f_files,
    )


def _free(disk: _Disk, limits: Limits) -> Iterator[Reading]:
    floor_bytes = min(limits.disk_free_bytes, disk.total_bytes * limits.disk_free_fraction)
    yield Reading(value=disk.free_bytes, limit=floor_bytes, floor=True, where=str(disk.path))
    if disk.total_inodes:
        floor = disk.total_inodes * min(_INODES_FREE_FRACTION, limits.disk_free_fraction)
        yield Reading(value=disk.free_inodes, limit=floor, floor=True, where=str(disk.path), unit="inodes")
