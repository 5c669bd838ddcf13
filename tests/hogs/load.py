"""Two hundred tasks, half of them liars, in an order by the dice; and what each is to answer."""

from __future__ import annotations

import random
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hogs import work
from tests.hogs.work import MB

LIE_BYTES = 1_200 * MB
FILE_BYTES = 500 * MB
FORKS = 200
#: Nearly a second of one core.
ITERATIONS = 3_000_000
SORTED = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Call:
    """A task, what it is called with (but for ledger and number), and what it returns if it gets to its end."""

    task: Any
    arguments: tuple[Any, ...]
    answer: Any
    honest: bool

    @property
    def name(self) -> str:
        return str(self.task.__name__)


def mixed(rng: random.Random, folder: Path, small_disk: Path | None) -> list[Call]:
    """All calls. `folder` is for a large file to read, `small_disk` one that may be filled up."""
    calls = [*honest(rng, folder, small_disk), *liars()]
    rng.shuffle(calls)
    return calls


def honest(rng: random.Random, folder: Path, small_disk: Path | None) -> list[Call]:
    """A hundred tasks that take what they declare."""
    held = {work.holds_20_mb: 20, work.holds_100_mb: 100, work.holds_200_mb: 200, work.holds_300_mb: 300}
    calls = [_honest(task, rng.uniform(0.05, 0.5), answer=size * MB) for task, size in held.items() for _ in range(16)]
    calls += [_honest(work.sorts, SORTED, answer=SORTED) for _ in range(8)]
    calls += [_honest(work.runs_a_program, answer=80 * MB) for _ in range(8)]
    file_path, checksum = _large_file(folder)
    calls += [_honest(work.reads_a_file, str(file_path), answer=[checksum, checksum]) for _ in range(6)]
    hashes = [work.burn(salt, ITERATIONS) for salt in range(4)]
    calls += [_honest(work.burns, ITERATIONS, answer=hashes) for _ in range(10)]
    if small_disk is not None:
        calls += [_honest(work.fills_a_disk, str(small_disk), answer="No space left on device") for _ in range(4)]
    missing = 100 - len(calls)
    return calls + [_honest(work.holds_20_mb, 0.1, answer=20 * MB) for _ in range(missing)]


def liars() -> list[Call]:
    """A hundred that don't."""
    counts = {
        work.allocates: 25,
        work.allocates_with_numpy: 10,
        work.leaks: 10,
        work.has_a_program_allocate: 10,
        work.has_many_programs_allocate: 6,
        work.shares_memory: 15,
        work.shares_memory_by_name: 9,
    }
    calls = [_liar(task, LIE_BYTES, answer=LIE_BYTES) for task, count in counts.items() for _ in range(count)]
    calls += [_liar(work.forks, FORKS, answer=FORKS) for _ in range(5)]
    if shutil.which("stress-ng"):
        calls += [_liar(work.stresses, LIE_BYTES, answer=0) for _ in range(6)]
    missing = 100 - len(calls)
    return calls + [_liar(work.says_nothing, 900 * MB, answer=900 * MB) for _ in range(missing)]


def _honest(task: Any, *arguments: Any, answer: Any) -> Call:
    return Call(task=task, arguments=arguments, answer=answer, honest=True)


def _liar(task: Any, *arguments: Any, answer: Any) -> Call:
    return Call(task=task, arguments=arguments, answer=answer, honest=False)


def _large_file(folder: Path) -> tuple[Path, int]:
    """A file larger than any reservation, and its checksum."""
    path, checksum = folder / "large", 0
    with path.open("wb", buffering=0) as file:
        for number in range(FILE_BYTES // (10 * MB)):
            part = bytes([number]) * (10 * MB)
            checksum = zlib.crc32(part, checksum)
            file.write(part)
    return path, checksum
