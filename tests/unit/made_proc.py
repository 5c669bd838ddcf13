"""A `/proc` and a tree of control groups with just the files that the guard reads."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class MadeProc:
    """Sizes are in pages, times in seconds."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        self.proc.mkdir()
        self.cgroups.mkdir()
        self.memory(total=9_999_999, available=1_000_000)

    def memory(self, *, total: int, available: int) -> None:
        (self.proc / "meminfo").write_text(
            f"MemTotal:       {total * PAGE_BYTES // 1024} kB\nMemFree:           1 kB\n"
            f"MemAvailable:   {available * PAGE_BYTES // 1024} kB\nBuffers:           1 kB\n"
        )

    def process(
        self,
        pid: int,
        *,
        own: int = 0,
        shmem: int = 0,
        files: int = 0,
        children: list[int] | None = None,
        by_threads: dict[int, list[int]] | None = None,
        cpu_s: float = 0.0,
        ended_cpu_s: float = 0.0,
        started: int = 1,
    ) -> None:
        """Make or change a process; `by_threads`: children by the thread other than the main one that started them."""
        threads = {pid: children or []} | (by_threads or {})
        for thread, started_here in threads.items():
            task = self.proc / f"{pid}/task/{thread}"
            task.mkdir(parents=True, exist_ok=True)
            (task / "children").write_text("".join(f"{child} " for child in started_here))
        ticks = [round(cpu_s * TICKS_PER_S), 0, round(ended_cpu_s * TICKS_PER_S), 0]
        fields = ["S", 1, 1, 1, 0, -1, 0, 0, 0, 0, 0, *ticks, 20, 0, len(threads), 0, started, 99999, 99999, 0, 0]
        (self.proc / f"{pid}/stat").write_text(f"{pid} (a) name) {' '.join(map(str, fields))}\n")
        (self.proc / f"{pid}/statm").write_text(f"99999 {own + shmem + files} {shmem + files} 1 0 1 0\n")
        (self.proc / f"{pid}/status").write_text(
            f"Name:\tname\nRssAnon:\t  1 kB\nRssShmem:\t  {shmem * PAGE_BYTES // 1024} kB\nThreads:\t1\n"
        )

    def share(self, pid: int, *, own: int = 0, shmem: int = 0, files: int = 0) -> None:
        """What is a process's share of its pages."""
        sizes = {"Pss_Anon": own, "Pss_File": files, "Pss_Shmem": shmem}
        lines = [f"{name}:       {pages * PAGE_BYTES // 1024} kB\n" for name, pages in sizes.items()]
        total = (own + shmem + files) * PAGE_BYTES // 1024
        (self.proc / f"{pid}/smaps_rollup").write_text(
            f"00-ff ---p 0 0 0 [rollup]\nRss: 9 kB\nPss:  {total} kB\n{''.join(lines)}"
        )

    def gone(self, pid: int) -> None:
        shutil.rmtree(self.proc / str(pid))

    def in_groups(self, pid: int, cgroup: str, mountinfo: str) -> None:
        (self.proc / str(pid)).mkdir(exist_ok=True)
        (self.proc / f"{pid}/cgroup").write_text(cgroup)
        (self.proc / f"{pid}/mountinfo").write_text("23 1 254:0 / / rw - ext4 /dev/root rw\n" + mountinfo)

    def group(self, path: str, **files: str | int) -> Path:
        """A group's folder; file names with `__` for the dot."""
        folder = self.cgroups / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (folder / name.replace("__", ".")).write_text(f"{value}\n")
        return folder
