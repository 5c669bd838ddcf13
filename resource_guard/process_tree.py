"""The processes AgentLink runs, and what each takes: read from Linux's `/proc`, ten times a second.

Directly, since psutil's `children(recursive=True)` scans every process of the machine: 2.4 ms where a list of children
takes 0.01 ms.

What a process takes is its anonymous and its shared memory. What it maps from files is left out: the kernel can drop
it, so a task that reads a large file by `mmap` takes no memory from anyone. Programs and libraries are files too and
needed all the time: they count up to `PROGRAMS_BYTES`.

Not seen: processes that left the tree because their parent ended before them, and files in `/dev/shm` that no process
has mapped. Both show in what the machine has left.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from resource_guard.kept_files import KeptFiles, kilobytes

#: Of the pages of files that processes map, so much counts; more is data, which can be dropped.
PROGRAMS_BYTES = 64_000_000
# Three files of each process are kept open, of so many processes.
_KEPT_PROCESSES = 64
# The most time that shares are read for at one look, so that the next is not late; but one process is read in one go.
_CORRECT_S = 0.02
# Writing to pages that it shares makes them a process's own, and no cheap figure shows it. A process may do so at this
# rate while it runs; where one is found not to, half as fast each time, down to the second.
_COPIED_BYTES_PER_S = 300_000_000
_COPIED_LEAST_BYTES_PER_S = 3_000_000
# Shared memory is looked up again when the pages that a process shares have changed by so many.
_SHARED_PAGES_STEP = 256

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What a process was found to take when its share of pages was read, and what else was known then."""

    memory_bytes: int
    #: Of the pages that it maps from files.
    files_bytes: int
    private_bytes: int
    shmem_bytes: int
    cpu_s: float
    moved_bytes: float
    copied_bytes_per_s: float


class Process:
    """One process, as it was at the last look."""

    __slots__ = (
        "children",
        "cpu_s",
        "ended_cpu_s",
        "pid",
        "private_bytes",
        "share",
        "shared_pages",
        "shmem_bytes",
        "started",
    )

    def __init__(self, pid: int, started: int) -> None:
        self.pid = pid
        #: In ticks since the machine's start: with the pid it tells a process from every other.
        self.started = started
        #: CPU time of its own, and of descendants that have ended and been waited for.
        self.cpu_s = self.ended_cpu_s = 0.0
        self.children: Sequence[int] = ()
        #: Anonymous and shared memory, with pages that others have too counted in full.
        self.private_bytes = 0
        self.shared_pages: int | None = None
        self.shmem_bytes = 0
        self.share: Share | None = None

    @property
    def memory_bytes(self) -> int:
        """Its share of what it takes, as far as it is known: as last read, and what has come or gone since."""
        if self.share is None:
            return self.private_bytes
        return min(self.private_bytes, max(0, self.share.memory_bytes + self.private_bytes - self.share.private_bytes))

    def doubt_bytes(self, moved_bytes: float) -> float:
        """How wrong that may be. What a process takes anew is its own; what it does with shared pages is not seen."""
        if self.share is None:
            return self.private_bytes
        shared_bytes = self.share.private_bytes - self.share.memory_bytes
        freed_bytes = max(0, self.share.private_bytes - self.private_bytes)
        copied_bytes = (self.cpu_s - self.share.cpu_s) * self.share.copied_bytes_per_s
        return (
            min(shared_bytes, freed_bytes + copied_bytes)
            + abs(self.shmem_bytes - self.share.shmem_bytes)
            + moved_bytes
            - self.share.moved_bytes
        )


class ProcessTree:
    """`root_pids`, read anew at each look, and all their descendants, each once.

    Forked children share pages with their parent, and the sum of their RSS counts those once for each: 2.6 times too
    much was seen with eight children. A process's share (PSS) counts them right, but is a hundred times dearer to read,
    22 ms for each GB. So `correct` reads only a few at a time, those first that may be most wrong.
    """

    def __init__(
        self,
        root_pids: Sequence[int],
        proc: Path = Path("/proc"),
        *,
        timer: Callable[[], float] = time.thread_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root_pids = root_pids
        self._proc = str(proc)
        self._timer, self._clock = timer, clock
        self._files = KeptFiles(3 * _KEPT_PROCESSES)
        self._allowed_s = _CORRECT_S
        self._corrected_at: float | None = None
        # How much of its share each process may have gained or lost by others' coming and going, added up.
        self._moved_bytes = 0.0
        #: As of the last look, by pid.
        self.processes: dict[int, Process] = {}

    def look(self) -> None:
        """Read all processes; one that ends meanwhile, or can't be read, is left out."""
        seen: dict[int, Process] = {}
        pending = list(self._root_pids)
        while pending:
            pid = pending.pop()
            if pid in seen:
                continue
            with suppress(OSError, ValueError, IndexError):
                seen[pid] = self._read(pid)
                pending += seen[pid].children
        for pid in self.processes.keys() - seen.keys():
            gone = self.processes[pid]
            self._move(gone.private_bytes - gone.memory_bytes, len(seen))
            self._forget(pid)
        self.processes = seen

    def correct(self, at: float, core_share: float, tolerance_bytes: float) -> None:
        """Read shares until what all take is known this well.

        What it takes to do so again and again is at most `core_share` of a core's time on average. A first reading is
        not counted in that: the fork before it has taken longer, and until then most of the process counts twice.
        """
        since_s = 0.0 if self._corrected_at is None else at - self._corrected_at
        self._corrected_at = at
        self._allowed_s = min(_CORRECT_S, self._allowed_s + since_s * core_share)
        began_s = self._clock()
        doubts = [(process.doubt_bytes(self._moved_bytes), process.pid) for process in self.processes.values()]
        doubt_bytes = sum(doubt for doubt, _ in doubts)
        for doubt, pid in sorted(doubts, reverse=True):
            # By the clock: it waits for a process that is just changing what it maps.
            if doubt_bytes <= tolerance_bytes or self._clock() >= began_s + _CORRECT_S:
                return
            again = self.processes[pid].share is not None
            if again and self._allowed_s <= 0:
                continue
            took_s = self._read_share(self.processes[pid])
            self._allowed_s -= took_s if again else 0.0
            doubt_bytes -= doubt

    @property
    def memory_bytes(self) -> int:
        """What all processes take together."""
        files_bytes = sum(process.share.files_bytes for process in self.processes.values() if process.share)
        return sum(process.memory_bytes for process in self.processes.values()) + min(files_bytes, PROGRAMS_BYTES)

    def with_descendants(self, pid: int) -> list[Process]:
        """The process first; empty if it is not there."""
        found: dict[int, Process] = {}
        pending = [pid]
        while pending:
            one = pending.pop()
            if one not in found and one in self.processes:
                found[one] = self.processes[one]
                pending += found[one].children
        return list(found.values())

    def close(self) -> None:
        """Close the files that are kept open."""
        self._files.close()

    def _read(self, pid: int) -> Process:
        fields = self._text(pid, "stat").rpartition(b")")[2].split(None, 20)
        started = int(fields[19])
        process = self.processes.get(pid)
        if process is None or process.started != started:
            process = Process(pid, started)
        process.cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
        process.ended_cpu_s = (int(fields[13]) + int(fields[14])) / _TICKS_PER_S
        process.children = list(self._children(pid, threads=int(fields[17])))
        self._read_private(process)
        return process

    def _read_private(self, process: Process) -> None:
        _, resident, shared, *_ = map(int, self._text(process.pid, "statm").split())
        if process.shared_pages is None or abs(shared - process.shared_pages) >= _SHARED_PAGES_STEP:
            # Only this dearer file tells shared memory from files.
            status = self._text_once(process.pid, "status")
            process.shmem_bytes = kilobytes(status, b"\nRssShmem:") or 0
            process.shared_pages = shared
        process.private_bytes = (resident - shared) * _PAGE_BYTES + process.shmem_bytes

    def _read_share(self, process: Process) -> float:
        """How long it took. Another user's process can't be read, nor one that has just ended: it counts in full."""
        began_s = self._timer()
        rollup = self._text_once(process.pid, "smaps_rollup")
        anonymous, shmem = kilobytes(rollup, b"\nPss_Anon:"), kilobytes(rollup, b"\nPss_Shmem:")
        if anonymous is not None and shmem is not None:
            memory_bytes, files_bytes = anonymous + shmem, kilobytes(rollup, b"\nPss_File:") or 0
        else:  # Linux before 5.3 does not tell them apart
            memory_bytes, files_bytes = kilobytes(rollup, b"\nPss:") or process.private_bytes, 0
        memory_bytes = min(memory_bytes, process.private_bytes)
        copied_bytes_per_s: float = _COPIED_BYTES_PER_S
        if process.share is None:
            self._move(process.private_bytes - memory_bytes, len(self.processes))
        else:
            found = abs(memory_bytes - process.memory_bytes) / max(0.01, process.cpu_s - process.share.cpu_s)
            least = max(_COPIED_LEAST_BYTES_PER_S, process.share.copied_bytes_per_s / 2)
            copied_bytes_per_s = min(_COPIED_BYTES_PER_S, max(2 * found, least))
        process.share = Share(
            memory_bytes=memory_bytes,
            files_bytes=files_bytes,
            private_bytes=process.private_bytes,
            shmem_bytes=process.shmem_bytes,
            cpu_s=process.cpu_s,
            moved_bytes=self._moved_bytes,
            copied_bytes_per_s=copied_bytes_per_s,
        )
        return self._timer() - began_s

    def _move(self, shared_bytes: int, processes: int) -> None:
        """Who shares pages, or does so no longer, changes the share of all others that have them."""
        self._moved_bytes += shared_bytes / max(1, processes)

    def _children(self, pid: int, *, threads: int) -> Iterator[int]:
        """Each thread lists only the children that it has started itself."""
        if threads == 1:
            yield from map(int, self._text(pid, f"task/{pid}/children").split())
            return
        for thread in _listed(f"{self._proc}/{pid}/task"):
            yield from map(int, self._text_once(pid, f"task/{thread}/children").split())

    def _text(self, pid: int, name: str) -> bytes:
        return self._files.read(f"{self._proc}/{pid}/{name}")

    def _text_once(self, pid: int, name: str) -> bytes:
        """Empty if it can't be read."""
        try:
            with open(f"{self._proc}/{pid}/{name}", "rb", buffering=0) as file:  # noqa: PTH123 - many times a second
                return file.read()
        except OSError:
            return b""

    def _forget(self, pid: int) -> None:
        for name in ("stat", "statm", f"task/{pid}/children"):
            self._files.forget(f"{self._proc}/{pid}/{name}")


def _listed(folder: str) -> Iterable[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - ten times a second, and six times faster
    except OSError:
        return ()
