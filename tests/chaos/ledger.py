"""The ledger: where tasks under chaos leave word, one line as they begin and one as they end."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One try of a task, of which there should be one. Times are of `time.monotonic()`, the same in all processes."""

    number: int
    id: str
    worker: str
    child_pid: int
    started_at: float
    ended_at: float | None


def write(path: str, what: str, number: int, attempt_id: str, worker: str) -> None:
    """Append a line in one write: lines of processes that write at once, or die as they do, never mix."""
    line = f"{what} {number} {attempt_id} {worker} {os.getpid()} {time.monotonic():.6f}\n"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def read(path: Path) -> dict[int, list[Attempt]]:
    """Each task's attempts, in the order in which they began."""
    lines = [line.split(" ") for line in path.read_text().splitlines()]
    ends = {attempt_id: float(at) for what, _, attempt_id, _, _, at in lines if what == "end"}
    attempts: dict[int, list[Attempt]] = defaultdict(list)
    for what, number, attempt_id, worker, pid, at in lines:
        if what == "start":
            attempts[int(number)].append(
                Attempt(
                    number=int(number),
                    id=attempt_id,
                    worker=worker.split("@")[0],
                    child_pid=int(pid),
                    started_at=float(at),
                    ended_at=ends.get(attempt_id),
                )
            )
    return {number: sorted(tries, key=lambda attempt: attempt.started_at) for number, tries in attempts.items()}
