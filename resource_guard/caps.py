"""In a pool process: what one task may take, what it took, and giving back what it has left.

A cap is the process's `RLIMIT_DATA`, which programs it starts inherit: an allocation beyond it is a `MemoryError` in
the task, and the process lives. It counts what is mapped, touched or not. The peak is the kernel's `VmHWM`, reset
before the task: `ru_maxrss` of a forked process begins at its parent's. Where there is no `/proc` nothing is capped or
measured.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

#: The kernel ends a task before the worker or the broker: of 1,000, on top of what memory counts for.
OOM_SCORE_ADJUST = 500
#: Tasks leave the machine to whoever sits at it. No more than that: with 5, the worker's main process, which then runs
#: before the task that has the next result for it, took 15 % more time for each in short runs.
NICE = 1
#: Of memory that a task has left behind, giving back less is not worth the time it takes.
TRIM_ABOVE_BYTES = 32_000_000

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Used(NamedTuple):
    """What one task took of its process: memory at its peak beyond what the process had before, CPU and wall time."""

    peak_bytes: int
    cpu_s: float
    wall_s: float


def settle_in() -> None:
    """Once in each new pool process: the kernel and the scheduler prefer all others to it.

    It leads a process group: by that, what its tasks start can be found once their parents have ended, and ends with it
    when it is killed. billiard kills the group of one that leads, too, at a hard time limit.
    """
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJUST))
    with contextlib.suppress(OSError):
        os.nice(NICE)


@dataclass(frozen=True, slots=True)
class Cap:
    """A cap that holds, and what was in memory as it began."""

    rss_bytes: int
    _knows_peak: bool

    def used_bytes(self) -> int:
        """Memory taken since it began, at its peak: a task that has failed has freed most of it by then."""
        return max(0, (_peak_bytes() if self._knows_peak else _memory()[0]) - self.rss_bytes)


@contextlib.contextmanager
def capped(cap_bytes: int) -> Iterator[Cap]:
    """Let this process, and each that it starts, map at most so much more than it has mapped by now."""
    rss_bytes, mapped_bytes = _memory()
    cap = Cap(rss_bytes, _knows_peak=_forget_peak())
    if not mapped_bytes:
        yield cap
        return
    before = soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = mapped_bytes + cap_bytes
    allowed = [wanted, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(allowed), hard))
    try:
        yield cap
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


class Meter:
    """Measures one task: `start` before it, `stop` after it."""

    def start(self) -> None:
        """Note where it begins."""
        self._began_at, self._cpu_s = time.monotonic(), _cpu_s()
        self._rss_bytes = _memory()[0]
        _forget_peak()

    def stop(self) -> Used:
        """What was taken since."""
        return Used(
            peak_bytes=max(0, _peak_bytes() - self._rss_bytes),
            cpu_s=_cpu_s() - self._cpu_s,
            wall_s=time.monotonic() - self._began_at,
        )


_idle_bytes: int | None = None
#: In the main process: what pool processes have said that they hold without a task, in bytes by pid.
told_bytes: dict[int, int] = {}


def give_back() -> int:
    """After a task: hand freed memory back to the machine, if there is much of it; what this process still holds."""
    global _idle_bytes
    if _idle_bytes is None or _memory()[0] > _idle_bytes + TRIM_ABOVE_BYTES:
        gc.collect()
        if (trim := malloc_trim()) is not None:
            trim(0)
        # What a task has cached on purpose is no reason to try again each time.
        _idle_bytes = _memory()[0]
    return _own_bytes()


def _own_bytes() -> int:
    """Bytes in memory that are of no file and not shared; 0: unknown."""
    if (fd := _statm(os.getpid())) is None:
        return 0
    fields = os.pread(fd, 128, 0).split()
    return (int(fields[1]) - int(fields[2])) * _PAGE_BYTES


def _cpu_s() -> float:
    """CPU time of this process, and of the programs it has started and waited for.

    To the microsecond: by `os.times`, which counts in hundredths, a task of 3 ms may have kept three cores busy.
    """
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


@cache
def _statm(pid: int) -> int | None:
    """The open file; by pid, since a forked process must not read its parent's."""
    try:
        return os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _memory() -> tuple[int, int]:
    """Bytes in memory, and bytes mapped for data (which is what `RLIMIT_DATA` counts, and the stack); 0: unknown."""
    if (fd := _statm(os.getpid())) is None:
        return 0, 0
    fields = os.pread(fd, 128, 0).split()
    return int(fields[1]) * _PAGE_BYTES, int(fields[5]) * _PAGE_BYTES


@cache
def _clear_refs(pid: int) -> int | None:
    """The open file, as `_statm`: opening it takes ten times as long as writing to it."""
    try:
        return os.open(f"/proc/{pid}/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _forget_peak() -> bool:
    """Have the kernel forget the peak of what was before; False where it does not."""
    if (fd := _clear_refs(os.getpid())) is None:
        return False
    with contextlib.suppress(OSError):
        return os.write(fd, b"5") == 1
    return False


def _peak_bytes() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_bytes().splitlines():
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


@cache
def malloc_trim() -> ctypes._NamedFuncPointer | None:
    """Glibc keeps what is freed; other C libraries have no such function."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
