"""A task for later waits in the broker, not in a worker, and starts on time; what is urgent goes first."""

from __future__ import annotations

import random
import statistics
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from tasks import app
from tests.integration import sample, troubled
from tests.integration.system import System
from tests.waiting import wait_until

DELAYED = "agentlink:delayed:cpu"


@pytest.fixture
def ledger(system: System) -> Path:
    """Where tasks write down when they began, and their names."""
    return system.folder / "ledger"


def _begun(ledger: Path) -> list[tuple[float, str]]:
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    return [(float(line.split()[0]), line.split()[1]) for line in lines]


def _start(system: System, **options: str) -> None:
    system.start_worker(concurrency=1, imports=troubled.IMPORTS, **options)


def test_tasks_for_later_start_on_time_and_in_the_order_of_time(system: System, ledger: Path) -> None:
    _start(system)
    now = datetime.now(UTC)
    times = {f"{n}": now + timedelta(seconds=1 + 0.3 * n) for n in range(6)}
    for name in random.sample(sorted(times), len(times)):
        troubled.begin.apply_async((str(ledger), name), eta=times[name])
    wait_until(lambda: len(_begun(ledger)) == len(times), what="all of them")
    assert [name for _, name in _begun(ledger)] == sorted(times)
    late_s = [begun - times[name].timestamp() for begun, name in _begun(ledger)]
    assert min(late_s) > -0.002
    assert statistics.median(late_s) < 0.2
    assert max(late_s) < 1


def test_a_countdown_survives_the_broker_and_the_worker(system: System, ledger: Path) -> None:
    _start(system)
    called = time.time()
    troubled.begin.apply_async((str(ledger), "it"), countdown=4)
    assert (system.client.zcard(DELAYED), system.in_flight()) == (1, 0)
    system.workers[0].kill()
    system.restart_broker()
    _start(system)
    wait_until(lambda: len(_begun(ledger)) == 1, what="its start")
    assert 3.9 < _begun(ledger)[0][0] - called < 5
    wait_until(lambda: system.client.zcard(DELAYED) + system.in_flight() == 0, what="an empty broker")
    assert sample.add.delay(1, 2).get(timeout=10) == 3
    assert len(_begun(ledger)) == 1


def test_one_that_is_due_while_no_worker_is_up_starts_with_the_next(system: System, ledger: Path) -> None:
    troubled.begin.apply_async((str(ledger), "it"), countdown=0.1)
    _start(system)
    wait_until(lambda: len(_begun(ledger)) == 1, what="its start")


def test_ten_thousand_tasks_for_later_take_no_memory_of_a_worker(system: System) -> None:
    _start(system)
    worker = psutil.Process(system.workers[0].pid)
    sample.add.delay(1, 2).get(timeout=10)
    before = worker.memory_info().rss
    with app.producer_or_acquire():
        for number in range(10_000):
            sample.add.apply_async((number, number), countdown=3600)
    assert system.client.zcard(DELAYED) == 10_000
    for number in range(20):
        assert sample.add.delay(number, 1).get(timeout=10) == number + 1
    assert system.in_flight() <= 1
    assert worker.memory_info().rss - before < 3_000_000
    system.client.delete(DELAYED)


def test_what_is_urgent_goes_first_and_equals_in_the_order_of_their_calls(system: System, ledger: Path) -> None:
    """9 is the most urgent, 0 the least and what a call has that does not say."""
    calls = [(priority, turn) for turn in range(3) for priority in random.sample(range(10), 10)]
    for priority, turn in calls:
        options = {"priority": priority} if priority else {}
        troubled.begin.apply_async((str(ledger), f"{priority}-{turn}"), **options)
    _start(system)
    wait_until(lambda: len(_begun(ledger)) == len(calls), what="all of them")
    assert [name for _, name in _begun(ledger)] == [f"{p}-{turn}" for p in range(9, -1, -1) for turn in range(3)]


def test_a_task_for_later_is_as_urgent_when_its_time_has_come(system: System, ledger: Path) -> None:
    for name, priority in (("last", 0), ("second", 5), ("first", 9)):
        troubled.begin.apply_async((str(ledger), name), priority=priority, countdown=0.1)
    troubled.begin.apply_async((str(ledger), "third"), priority=1)
    wait_until(lambda: system.client.zcount(DELAYED, 0, time.time() * 1000) == 3, what="all three to be due")
    _start(system)
    wait_until(lambda: len(_begun(ledger)) == 4, what="all of them")
    assert [name for _, name in _begun(ledger)] == ["first", "second", "third", "last"]
