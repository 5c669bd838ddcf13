"""Tasks that take memory, as they declare or not, and wait: what tests of the guard run."""

from __future__ import annotations

import mmap
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from celery import chain, group

from tasks import task
from tests.chaos import ledger
from tests.integration import sample
from workflows import workflow

MB = 1_000_000
_PIECE_MB = 20
#: A program that makes a file with its pid as its name, takes 100 MB, and waits.
_PROGRAM = """
import os, pathlib, sys, time
pathlib.Path(sys.argv[1], str(os.getpid())).touch()
held = bytearray(b"x") * 100_000_000
time.sleep(100)
"""


def _take(mb: int) -> list[bytearray]:
    """Take memory as a task does that reads more and more."""
    return [bytearray(b"x") * (_PIECE_MB * MB) for _ in range(mb // _PIECE_MB)]


@task
def take(mb: int) -> int:
    return len(_take(mb))


@task(memory="100MB")
def take_though_100_are_declared(mb: int) -> int:
    return len(_take(mb))


@task(memory="50GB")
def declare_50_gb() -> None: ...


@task(memory="100MB")
def start_programs(folder: str, count: int) -> None:
    _start_programs(folder, count)


@task(memory="100MB", acks_late=False)
def start_programs_once(folder: str, count: int) -> None:
    """The same; it must not run twice."""
    _start_programs(folder, count)


def _start_programs(folder: str, count: int) -> None:
    """Start programs that take 100 MB each, and wait for them."""
    programs = [subprocess.Popen([sys.executable, "-c", _PROGRAM, folder]) for _ in range(count)]
    for program in programs:
        program.wait()


@task(bind=True)
def share(self: Any, number: int, path: str, mb: int, unless_alone: str) -> int:
    """Take memory that is shared with nobody, yet shareable; no cap of the process counts that.

    Then wait for the file `unless_alone`.
    """
    attempt_id = uuid.uuid4().hex[:12]
    ledger.write(path, "start", number, attempt_id, self.request.hostname)
    with mmap.mmap(-1, mb * MB) as memory:
        for at in range(0, mb * MB, MB):
            memory[at : at + MB] = b"x" * MB
            time.sleep(0.001)
        _wait_for(unless_alone)
    ledger.write(path, "end", number, attempt_id, self.request.hostname)
    return number


@task(bind=True, memory="600MB")
def enter_with_600_mb(self: Any, number: int, path: str, duration_s: float) -> int:
    return _enter(self, number, path, duration_s)


@task(bind=True, memory="200MB")
def enter_with_200_mb(self: Any, number: int, path: str, duration_s: float) -> int:
    return _enter(self, number, path, duration_s)


def _enter(task_: Any, number: int, path: str, duration_s: float) -> int:
    attempt_id = uuid.uuid4().hex[:12]
    ledger.write(path, "start", number, attempt_id, task_.request.hostname)
    time.sleep(duration_s)
    ledger.write(path, "end", number, attempt_id, task_.request.hostname)
    return number


@task(memory="400MB")
def reserve_400_mb_until(path: str, started: str) -> None:
    Path(started).touch()
    _wait_for(path)


@task(memory="600MB")
def reserve_600_mb_until(path: str, started: str) -> None:
    Path(started).touch()
    _wait_for(path)


@workflow
def takes(mb: int) -> Any:
    return chain(take.si(mb), sample.add.s(0))


@workflow
def enters(numbers: list[int], path: str) -> Any:
    return group(enter_with_600_mb.si(number, path, 0.0) for number in numbers)


def _wait_for(path: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.01)
