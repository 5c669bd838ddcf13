"""Short tasks are handed to a process that still runs another; one that takes long after all holds nobody up."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from celery.result import AsyncResult

from tests.chaos import ledger, work
from tests.integration.system import System, Worker
from tests.integration.test_guard import inspect
from tests.waiting import wait_until

LONG_S = 1.5
#: So many runs, and a task is known; all of the first are measured.
KNOWN_AFTER = 40


def known_worker(system: System, path: Path, concurrency: int) -> Worker:
    """A worker that knows `work.enter`, and takes it for a short task."""
    imports = "tests.chaos.work,tests.integration.all_short"
    worker = system.start_worker(concurrency=concurrency, cpu="100%", imports=imports)
    for number in range(KNOWN_AFTER):
        work.enter.delay(-1 - number, str(path), 0.0).get(timeout=20)
    return worker


def enter(path: Path, long: int, count: int = 60) -> list[AsyncResult]:
    """Calls of which one, number `long`, takes `LONG_S` seconds."""
    return [work.enter.delay(number, str(path), LONG_S if number == long else 0.0) for number in range(count)]


def each_once(path: Path, results: list[AsyncResult]) -> dict[int, list[ledger.Attempt]]:
    for result in results:
        result.get(timeout=20)
    attempts = ledger.read(path)
    assert [len(attempts[number]) for number in range(len(results))] == [1] * len(results)
    return attempts


def taken_back(system: System) -> int:
    count: int = inspect(system, "guard")["tasks"]["taken_back"]
    return count


@pytest.mark.parametrize("concurrency", [1, 2])
def test_one_that_takes_long_after_all_holds_nobody_up(system: System, path: Path, concurrency: int) -> None:
    known_worker(system, path, concurrency)
    attempts = each_once(path, enter(path, long=10))
    [long] = attempts[10]
    if concurrency == 2:
        late = [number for number in range(60) if attempts[number][0].started_at > long.started_at + 1.0]
        assert late == []
    assert taken_back(system) >= 1


def test_what_a_process_came_to_too_late_runs_once_all_the_same(system: System, path: Path) -> None:
    """The worker's main process was stopped meanwhile: it had no chance to take it back."""
    worker = known_worker(system, path, concurrency=1)
    results = enter(path, long=10)
    wait_until(lambda: ledger.read(path).get(10), what="the long one", timeout_s=20)
    worker.process.send_signal(signal.SIGSTOP)
    # It ends, and the next one in its process comes too late.
    wait_until(lambda: ledger.read(path)[10][0].ended_at, what="the end of the long one", timeout_s=20)
    worker.process.send_signal(signal.SIGCONT)
    each_once(path, results)
    assert taken_back(system) >= 1


def test_of_a_process_that_dies_only_what_it_ran_runs_again(system: System, path: Path) -> None:
    """What was to follow runs elsewhere, once."""
    known_worker(system, path, concurrency=1)
    results = enter(path, long=10)
    [long] = wait_until(lambda: ledger.read(path).get(10), what="the long one", timeout_s=20)
    os.kill(long.child_pid, signal.SIGKILL)
    for result in results:
        result.get(timeout=20)
    attempts: dict[int, list[Any]] = ledger.read(path)
    assert [number for number in range(60) if len(attempts[number]) != 1] == [10]
    assert len(attempts[10]) == 2
