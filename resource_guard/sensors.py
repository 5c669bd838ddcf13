"""What the guard reads: one look at all that AgentLink runs and at what is left, made from the files of Linux."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from agentlink.cgroups import MOUNT, Cgroups, Limit, memory_used_bytes, processes
from resource_guard.cpu import CpuUse
from resource_guard.errors import SensorError
from resource_guard.kept_files import KeptFiles, kilobytes
from resource_guard.limits import Limits
from resource_guard.observation import Level, Observation, ProcessUse, Reading, Resource
from resource_guard.process_tree import ProcessTree
from resource_guard.psutil_sensor import PsutilMemorySensor
from resource_guard.slow_readings import SlowReadings

#: What control groups allow is looked up again so often: it changes rarely, and there are many files.
CEILINGS_S = 1.0
#: The shares of one core that exact readings of memory may take again and again: with headroom, near the pause, during
#: it, and where running work is about to be ended, which must not be for a wrong reading.
CORRECT_SHARES = (0.001, 0.002, 0.01, 0.25)
#: They stop where memory is known to this share of the limit.
TOLERANCE_FRACTION = 0.01
# Of what a control group allows this share must be left, or `memory_free` if that is less.
_GROUP_FREE_FRACTION = 0.05
_STALLS = ("cpu", "memory", "io")


class Sensor(Protocol):
    """Something that can be asked for an observation at any time, from one thread."""

    #: How many cores the machine, or the control group's quota, allows; as of the last look.
    cores: float

    def observe(self, at: float) -> Observation:
        """The readings of now, stamped with `at`.

        Raises:
            SensorError: there is nothing to decide on.
        """

    def close(self) -> None:
        """Let go of files and threads; a later look takes hold of them again."""


def make_sensors(
    limits_of: Callable[[], Limits],
    root_pids: Sequence[int],
    worker_pid: int,
    data_paths: Iterable[Path],
    broker: Callable[[], tuple[int, int] | None],
    home: Path,
) -> Sensor:
    """The best that work on this machine."""
    # The file needs Linux with CONFIG_PROC_CHILDREN, which a few kernels are built without.
    if Path(f"/proc/{worker_pid}/task/{worker_pid}/children").exists():
        return Sensors(limits_of, root_pids, worker_pid, data_paths, broker, home)
    return PsutilMemorySensor(limits_of, root_pids)


class Sensors:
    """Reads `/proc`, control groups, disks and the broker; what can't be read is absent from the observation.

    `root_pids` are counted with all their descendants, and read anew at each look, so it may change; the children of
    `worker_pid` are told apart. `broker` gives the bytes that its data takes and may take.
    """

    def __init__(
        self,
        limits_of: Callable[[], Limits],
        root_pids: Sequence[int],
        worker_pid: int,
        data_paths: Iterable[Path],
        broker: Callable[[], tuple[int, int] | None],
        home: Path,
        proc: Path = Path("/proc"),
        cgroups: Path = MOUNT,
    ) -> None:
        self._limits_of = limits_of
        self._worker_pid = worker_pid
        self._proc = proc
        self._cgroups = cgroups
        self._files = KeptFiles(1 + len(_STALLS))
        self._tree = ProcessTree(root_pids, proc)
        machine_cores = len(os.sched_getaffinity(0))
        self._cpu = CpuUse(machine_cores)
        self._slow = SlowReadings(limits_of, data_paths=data_paths, home=home, broker=broker)
        self._looked_up_at: float | None = None
        self._memory_limits: list[Limit] = []
        self._processes_limits: list[Limit] = []
        self._quota_group = ""
        self._machine_cores = machine_cores
        #: How many cores the machine, or the control group's quota, allows; as of the last look.
        self.cores: float = machine_cores

    def observe(self, at: float) -> Observation:
        """The readings of now, stamped with `at`.

        Raises:
            SensorError: memory can't be read, neither what is used nor what is left.
        """
        limits = self._limits_of()
        if self._looked_up_at is None or at >= self._looked_up_at + CEILINGS_S:
            self._look_up_ceilings()
            self._looked_up_at = at
        self._tree.look()
        total_bytes, available_bytes = self._machine_memory()
        readings = self._slow.readings()
        for resource, reading in (
            (Resource.MEMORY, self._memory(limits, total_bytes, at)),
            (Resource.MEMORY_FREE, self._memory_free(limits, available_bytes)),
            (Resource.CPU, self._cpu_used(limits, at)),
            (Resource.PROCESSES, self._processes(limits)),
        ):
            if reading is not None:
                readings[resource] = reading
        if Resource.MEMORY not in readings and Resource.MEMORY_FREE not in readings:
            raise SensorError("memory", f"neither {self._proc}/meminfo nor a process can be read")
        return Observation(
            at=at, readings=readings, children=self._children(), cpu_s=self._cpu.total_s, stalled=self._stalled()
        )

    def close(self) -> None:
        """Let go of files and threads; a later look takes hold of them again."""
        self._slow.close()
        self._tree.close()
        self._files.close()

    def _look_up_ceilings(self) -> None:
        groups = Cgroups(self._worker_pid, proc=self._proc, mount=self._cgroups)
        self._memory_limits = groups.memory_limits()
        self._processes_limits = groups.processes_limits()
        quota, group = groups.cpu_cores() or (self._machine_cores, "")
        self.cores = min(quota, self._machine_cores)
        self._quota_group = str(group) if quota < self._machine_cores else ""

    def _memory(self, limits: Limits, total_bytes: int | None, at: float) -> Reading | None:
        limit_bytes = limits.memory_bytes if total_bytes is None else min(limits.memory_bytes, total_bytes)
        least = min(self._memory_limits, key=lambda limit: limit.amount, default=None)
        if least is not None and least.amount < limit_bytes:
            limit_bytes = least.amount
            # Whoever is in the group counts, and the kernel has done the counting.
            if (used_bytes := memory_used_bytes(least.group)) is not None:
                return Reading(value=used_bytes, limit=limit_bytes, where=str(least.group))
        if not self._tree.processes:
            return None
        marks = limits.marks.get(Resource.MEMORY)
        level = Level.OK
        if marks is not None:
            fraction = self._tree.memory_bytes / limit_bytes
            level = max(marks.level_of(fraction), Level.THROTTLE if fraction >= marks.resume else Level.OK)
        self._tree.correct(at, CORRECT_SHARES[level], limit_bytes * TOLERANCE_FRACTION)
        return Reading(value=self._tree.memory_bytes, limit=limit_bytes)

    def _memory_free(self, limits: Limits, available_bytes: int | None) -> Reading | None:
        """Of the machine, and of every group that has a limit, the one that has least left by its floor."""
        readings = [] if available_bytes is None else [_left(available_bytes, limits.memory_free_bytes)]
        for limit in self._memory_limits:
            if (used_bytes := memory_used_bytes(limit.group)) is not None:
                floor_bytes = min(limits.memory_free_bytes, limit.amount * _GROUP_FREE_FRACTION)
                readings.append(_left(max(0, limit.amount - used_bytes), floor_bytes, str(limit.group)))
        return max(readings, key=lambda reading: reading.fraction, default=None)

    def _cpu_used(self, limits: Limits, at: float) -> Reading | None:
        if not self._tree.processes:
            return None
        cores = self._cpu.add(at, self._tree.processes.values())
        return Reading(value=cores / self.cores, limit=limits.cpu_fraction, where=self._quota_group)

    def _processes(self, limits: Limits) -> Reading | None:
        """The tree's against the setting, or a group's against its own limit: whichever is nearer to it."""
        readings = [Reading(value=len(self._tree.processes), limit=limits.processes)] if self._tree.processes else []
        readings += [
            Reading(value=count, limit=limit.amount, where=str(limit.group), unit="threads")
            for limit in self._processes_limits
            if (count := processes(limit.group)) is not None
        ]
        return max(readings, key=lambda reading: reading.fraction, default=None)

    def _children(self) -> Mapping[int, ProcessUse]:
        worker = self._tree.processes.get(self._worker_pid)
        return {use.pid: use for use in map(self._use, worker.children if worker else ()) if use is not None}

    def _use(self, pid: int) -> ProcessUse | None:
        descendants = self._tree.with_descendants(pid)
        if not descendants:
            return None
        return ProcessUse(
            pid=pid,
            rss_bytes=sum(process.private_bytes for process in descendants),
            cpu_s=sum(process.cpu_s + process.ended_cpu_s for process in descendants),
            pids=tuple(process.pid for process in descendants),
        )

    def _machine_memory(self) -> tuple[int | None, int | None]:
        """What there is, and what can be had of it without swapping."""
        try:
            text = self._files.read(f"{self._proc}/meminfo")
            return kilobytes(text, b"MemTotal:"), kilobytes(text, b"MemAvailable:")
        except (OSError, ValueError):
            return None, None

    def _stalled(self) -> Mapping[str, float]:
        return dict(self._stalls())

    def _stalls(self) -> Iterator[tuple[str, float]]:
        for name in _STALLS:
            try:
                text = self._files.read(f"{self._proc}/pressure/{name}")
                yield name, float(text.removeprefix(b"some avg10=").partition(b" ")[0])
            except (OSError, ValueError):  # a kernel without it, or with it switched off
                continue


def _left(left_bytes: float, floor_bytes: float, where: str = "") -> Reading:
    return Reading(value=left_bytes, limit=floor_bytes, floor=True, where=where)
