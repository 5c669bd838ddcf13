"""What the sampler has seen: peaks, means, and whether it looked often enough to say so."""

from __future__ import annotations

import contextlib
import csv
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import psutil

from tests.waiting import wait_until

SAMPLER = Path(__file__).with_name("sampler.py")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One line of the sampler's."""

    at_s: float
    processes: int
    rss_bytes: int
    #: What the kernel can't drop: exactly, where it is much; elsewhere at least the truth.
    own_bytes: int
    #: Of mapped files, where it was read.
    file_bytes: int
    cpu_s: float
    largest: str


@dataclass
class Watch:
    """The samples of one stretch of time."""

    samples: list[Sample] = field(default_factory=list)

    @property
    def highest(self) -> Sample:
        """The one with the most memory that the kernel can't drop."""
        return max(self.samples, key=lambda sample: sample.own_bytes)

    @property
    def highest_with_files(self) -> Sample:
        """The one with the most memory of any kind, of those for which that is known."""
        return max(self.samples, key=lambda sample: sample.own_bytes + sample.file_bytes)

    def gap_s(self, share: float) -> float:
        """The time between two samples that so large a share of these times is within."""
        gaps_s = sorted(later.at_s - earlier.at_s for earlier, later in pairwise(self.samples))
        return gaps_s[min(int(share * len(gaps_s)), len(gaps_s) - 1)]

    def cpu_fractions(self, over_s: float = 10.0) -> list[float]:
        """Mean shares of the machine's CPU, each over so long: one for each sample that has as much before it."""
        means = []
        start = 0
        for sample in self.samples:
            while start + 1 < len(self.samples) and sample.at_s - self.samples[start + 1].at_s >= over_s:
                start += 1
            first = self.samples[start]
            if (lasted_s := sample.at_s - first.at_s) >= over_s:
                means.append((sample.cpu_s - first.cpu_s) / lasted_s / psutil.cpu_count())
        return means


@contextlib.contextmanager
def watched(
    pids: Sequence[int], csv_path: Path, *, exact_above_bytes: int = 0, environment: str = ""
) -> Iterator[Watch]:
    """Have the sampler watch these processes and all they start; the samples are there afterwards."""
    command = [sys.executable, "-I", str(SAMPLER), "--csv", str(csv_path), "--exact-above", str(exact_above_bytes)]
    command += ["--environment", environment, *map(str, pids)]
    watch = Watch()
    with subprocess.Popen(command, stdin=subprocess.PIPE) as sampler:
        wait_until(lambda: csv_path.exists() and csv_path.read_text().count("\n") > 1, what="the first sample")
        try:
            yield watch
        finally:
            sampler.communicate(timeout=10)
            watch.samples += read(csv_path)
    assert sampler.returncode == 0, f"the sampler has ended with status {sampler.returncode}"


def read(csv_path: Path) -> list[Sample]:
    """The lines of the sampler's file."""
    with csv_path.open(newline="") as file:
        return [_sample(row) for row in csv.DictReader(file)]


def _sample(row: dict[str, str]) -> Sample:
    pss_bytes, file_bytes = int(row["pss_bytes"] or 0), int(row["pss_file_bytes"] or 0)
    return Sample(
        at_s=float(row["at_s"]),
        processes=int(row["processes"]),
        rss_bytes=int(row["rss_bytes"]),
        own_bytes=pss_bytes - file_bytes if pss_bytes else int(row["own_bytes"]),
        file_bytes=file_bytes,
        cpu_s=float(row["cpu_s"]),
        largest=row["largest"],
    )
