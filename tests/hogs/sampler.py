"""Watches the memory and CPU of processes and of all they start, from outside: it knows nothing of AgentLink.

    python sampler.py --csv FILE [--exact-above BYTES] [--environment NAME=VALUE] PID...

Writes a line of CSV 20 times a second until its standard input is closed. `own_bytes` is what the kernel can't drop,
all but the pages of mapped files. As a sum over processes it counts what they share since they were forked once for
each, so it is never less than the truth; where it is above `--exact-above`, PSS is read as well, which counts each page
once and is a hundred times as dear. A process belongs to the tree if its parent did when it was first seen, or if it
was started with `--environment`: one that leaves its parents is still watched.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import select
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

RATE_HZ = 20
FIELDS = ("at_s", "processes", "rss_bytes", "own_bytes", "pss_bytes", "pss_file_bytes", "cpu_s", "largest")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """One line of `/proc/PID/stat`; `cpu_s` with that of its children that have ended and been waited for."""

    pid: int
    parent: int
    started: int
    name: str
    rss_bytes: int
    cpu_s: float


@dataclass
class Tree:
    """The roots, and all that come from them."""

    roots: frozenset[int]
    environment: bytes = b""
    members: dict[int, Process] = field(default_factory=dict)
    #: CPU time of the tree since its beginning.
    cpu_s: float = 0.0
    #: Of that, what members had used that have ended and whose parent does not count it.
    lost_cpu_s: float = 0.0
    #: Processes that are none of the tree's, by pid and start.
    strangers: set[tuple[int, int]] = field(default_factory=set)

    def look(self) -> None:
        """Find out who is there now."""
        seen = {process.pid: process for process in processes()}
        before = self.members
        self.members = {
            pid: process
            for pid, process in seen.items()
            if pid in self.roots or (pid in before and before[pid].started == process.started)
        }
        pending = [process for pid, process in seen.items() if pid not in self.members]
        while pending:
            found = [process for process in pending if process.parent in self.members]
            if not found:
                found = [process for process in pending if self._was_started_with_it(process)]
            self.members |= {process.pid: process for process in found}
            pending = [process for process in pending if process.pid not in self.members] if found else []
        for pid, process in before.items():
            if pid not in self.members and process.parent not in self.members:
                self.lost_cpu_s += process.cpu_s
        # One that is waited for after its parent has been read, and before it is read itself, is missed once.
        self.cpu_s = max(self.cpu_s, self.lost_cpu_s + sum(process.cpu_s for process in self.members.values()))

    def _was_started_with_it(self, process: Process) -> bool:
        key = process.pid, process.started
        if not self.environment or key in self.strangers or process.pid in (os.getpid(), os.getppid()):
            return False
        with contextlib.suppress(OSError):
            if self.environment in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                return True
            self.strangers.add(key)
        return False


def processes() -> Iterator[Process]:
    """All of this machine; threads of the kernel, which have no memory, left out."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - 20 times a second
        if name.isdigit() and (text := read(f"/proc/{name}/stat")):
            title, _, rest = text.partition(b" (")[2].rpartition(b") ")
            fields = rest.split()
            if fields[0] != b"Z" and fields[21] == b"0":
                continue
            yield Process(
                pid=int(name),
                parent=int(fields[1]),
                started=int(fields[19]),
                name=title.decode(errors="replace"),
                rss_bytes=int(fields[21]) * PAGE_BYTES,
                cpu_s=sum(map(int, fields[11:15])) / TICKS_PER_S,
            )


def own_bytes(pid: int) -> int:
    """Memory of a process but for mapped files, whoever else has the same pages; 0 if it has ended."""
    sizes = kilobytes(f"/proc/{pid}/status", b"RssAnon:", b"RssShmem:")
    return sum(sizes) * 1024


def pss_bytes(pid: int) -> tuple[int, int]:
    """The proportional share of all memory, and of mapped files alone; 0 of a process that has ended."""
    total, of_files = kilobytes(f"/proc/{pid}/smaps_rollup", b"Pss:", b"Pss_File:")
    return total * 1024, of_files * 1024


def kilobytes(path: str, *names: bytes) -> list[int]:
    """The numbers in lines `NAME   123 kB`; 0 where there is no such line."""
    found = {line.split(maxsplit=1)[0]: line for line in read(path).splitlines() if line.startswith(names)}
    return [int(found[name].split()[1]) if name in found else 0 for name in names]


def read(path: str) -> bytes:
    """A file of `/proc`, empty if its process has ended."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - as above
            return file.read()
    except OSError:
        return b""


def sample(tree: Tree, exact_above_bytes: int) -> tuple[object, ...]:
    """One line: see `FIELDS`."""
    tree.look()
    at_s = time.monotonic()
    members = tree.members.values()
    own = sum(map(own_bytes, tree.members))
    exact = [pss_bytes(pid) for pid in tree.members] if own > exact_above_bytes else []
    pss, of_files = (sum(column) for column in zip(*exact, strict=True)) if exact else ("", "")
    largest = sorted(members, key=lambda process: -process.rss_bytes)[:3]
    words = " ".join(f"{process.pid}:{process.name}:{process.rss_bytes // 1_000_000}MB" for process in largest)
    rss = sum(process.rss_bytes for process in members)
    return f"{at_s:.4f}", len(members), rss, own, pss, of_files, f"{tree.cpu_s:.2f}", words


def main() -> None:
    """Sample until standard input is closed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--exact-above", type=int, default=0)
    parser.add_argument("--environment", default="")
    parser.add_argument("pids", type=int, nargs="+")
    arguments = parser.parse_args()
    tree = Tree(frozenset(arguments.pids), arguments.environment.encode())
    with contextlib.suppress(PermissionError):
        os.nice(-10)  # on time, also on a machine that is fully loaded
    with arguments.csv.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(FIELDS)
        due_at = time.monotonic()
        while not select.select([sys.stdin], [], [], max(0.0, due_at - time.monotonic()))[0]:
            lines.writerow(sample(tree, arguments.exact_above))
            file.flush()
            due_at = max(due_at + 1 / RATE_HZ, time.monotonic())


if __name__ == "__main__":
    main()
