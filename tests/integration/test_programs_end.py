"""What a task has started ends with the process that ran it, when that is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from celery.exceptions import TimeLimitExceeded

from tests.integration import sample
from tests.integration.system import System, Worker
from tests.process_tree import alive
from tests.waiting import wait_until


@pytest.fixture
def started(tmp_path: Path) -> Path:
    """Where the task says what it has started, a line each time it begins."""
    return tmp_path / "started"


def pids(started: Path, times: int = 1) -> list[int]:
    """The processes of all the programs that have been started, once there are so many."""

    def lines() -> list[str]:
        text = started.read_text() if started.exists() else ""
        return text.split() if text.count("\n") == times else []

    return [int(word) for word in wait_until(lines, what=f"{times} starts")]


def process_of(worker: Worker, program_pid: int) -> int:
    """The process of the pool that runs the task which has started a program."""
    [pid] = set(worker.children()) & {parent.pid for parent in psutil.Process(program_pid).parents()}
    return pid


def test_a_task_that_runs_again_does_not_have_its_program_run_twice(system: System, started: Path) -> None:
    """Its process has been killed: by the kernel, say."""
    worker = system.start_worker()
    release = system.folder / "release"
    result = sample.run_a_program.delay(str(started), str(release))
    first = pids(started)
    os.kill(process_of(worker, first[0]), signal.SIGKILL)
    second = set(pids(started, times=2)) - set(first)
    wait_until(lambda: not alive(first), what="the end of the first program")
    release.touch()
    assert result.get(timeout=20) == 0
    assert len(second) == len(first) == 2
    wait_until(lambda: not alive(list(second)), what="the end of the second program")


def test_a_hard_time_limit_ends_the_program_too(system: System, started: Path) -> None:
    system.start_worker()
    result = sample.run_a_program.s(str(started), "never").set(time_limit=1).delay()
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=20)
    wait_until(lambda: not alive(pids(started)), what="the end of the program")
