"""Memory to be had without ending anybody's work, and what we use of Celery's pool for that and for time limits."""

from __future__ import annotations

import gc
import inspect
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from billiard import pool as billiard_pool
from billiard import process as billiard_process
from celery.concurrency.asynpool import AsynPool
from kombu.asynchronous import hub as kombu_hub

from resource_guard.reclaim import fat, give_back_own
from resource_guard.recycle import take_out
from resource_guard.time_limits import count_running_time_only

MB = 1_000_000


@pytest.mark.parametrize(
    ("idle_mb", "fresh_mb", "chosen"),
    [
        ({}, 50, []),
        ({1: 50, 2: 100}, 50, []),
        ({1: 50, 2: 120, 3: 900}, 50, [3, 2]),
        ({1: 380, 2: 420}, 300, []),
        ({1: 380, 2: 460}, 300, [2]),
    ],
    ids=["none", "a little more is no reason", "the fattest first", "nor is a little of much", "but half as much is"],
)
def test_idle_processes_that_hold_much_more_than_a_new_one_are_fat(
    idle_mb: dict[int, int], fresh_mb: int, chosen: list[int]
) -> None:
    assert fat({pid: held * MB for pid, held in idle_mb.items()}, fresh_mb * MB) == chosen


class Node:
    """Refers to itself: only the garbage collector frees it."""

    def __init__(self) -> None:
        self.me, self.payload = self, bytearray(100_000)


def test_what_was_freed_goes_back_to_the_machine() -> None:
    """What refers to itself too: it waits for the garbage collector, which may not come round for long."""
    gc.disable()
    try:
        nodes = [Node() for _ in range(500)]
        held_bytes = psutil.Process().memory_info().rss
        del nodes
        assert give_back_own() > 40 * MB
        assert psutil.Process().memory_info().rss < held_bytes - 40 * MB
    finally:
        gc.enable()


class Timer:
    """What a hub returns."""

    def cancel(self) -> None: ...


class Hub:
    """An event loop's timers, which a test fires by hand."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = []

    def call_later(self, after_s: float, callback: Callable[..., None], *args: Any) -> Timer:
        self.timers.append((after_s, callback, args))
        return Timer()

    def fire(self) -> None:
        _, callback, args = self.timers.pop(0)
        callback(*args)


class LimitedPool(AsynPool):
    """Celery's own timers, over jobs that a test makes up."""

    def __init__(self) -> None:
        self._cache: dict[int, Any] = {}
        self.fired: list[str] = []
        self.on_soft_timeout = lambda _: self.fired.append("soft")
        self.on_hard_timeout = lambda _: self.fired.append("hard")

    def accept(self, ago_s: float, soft: float | None, hard: float | None) -> None:
        job = billiard_pool.ApplyResult(self._cache, None, soft_timeout=soft, timeout=hard)
        job._worker_pid, job._time_accepted = 4711, time.monotonic() - ago_s
        self.on_timeout_set(job, soft, hard)


@pytest.fixture
def pool() -> LimitedPool:
    return LimitedPool()


@pytest.mark.parametrize(("soft", "hard", "fired"), [(2.0, None, "soft"), (None, 2.0, "hard")])
def test_a_limit_comes_when_a_task_has_run_for_so_long(
    pool: LimitedPool, soft: float | None, hard: float | None, fired: str
) -> None:
    """Two seconds after its start it has been stopped for 1.4 of them, and so on, until it has run for two."""
    stopped, hub = {4711: 10.0}, Hub()  # ten seconds of an earlier task
    count_running_time_only(pool, stopped.__getitem__)
    pool._create_timelimit_handlers(hub)
    pool.accept(2.0, soft, hard)
    assert hub.timers[0][0] == 2.0
    stopped[4711] += 1.4
    hub.fire()
    assert hub.timers[0][0] == pytest.approx(1.4, abs=0.1)
    stopped[4711] -= 1.4  # as if all of that time had passed
    hub.fire()
    assert pool.fired == [fired]
    assert hub.timers == []


def test_the_hard_limit_counts_from_the_start_as_well(pool: LimitedPool) -> None:
    stopped, hub = {4711: 0.0}, Hub()
    count_running_time_only(pool, stopped.__getitem__)
    pool._create_timelimit_handlers(hub)
    pool.accept(3.0, 2.0, 3.0)
    hub.fire()
    assert pool.fired == ["soft"]
    stopped[4711] = 0.5
    hub.fire()
    assert pool.fired == ["soft"]
    assert hub.timers[0][0] == pytest.approx(0.5, abs=0.1)
    stopped[4711] = 0.0
    hub.fire()
    assert pool.fired == ["soft", "hard"]


def test_a_job_that_has_ended_meanwhile_has_no_limits(pool: LimitedPool) -> None:
    stopped, hub = {4711: 0.0}, Hub()
    count_running_time_only(pool, stopped.__getitem__)
    pool._create_timelimit_handlers(hub)
    pool.accept(2.0, 2.0, None)
    pool._cache.clear()
    hub.fire()
    assert pool.fired == []


def test_limits_are_wrapped_once_for_each_connection(pool: LimitedPool) -> None:
    """The pool makes its handlers anew, from its own methods and not from what we made of those."""
    hub = Hub()
    count_running_time_only(pool, lambda _: 0.0)
    for _ in range(3):
        pool._create_timelimit_handlers(hub)
    pool.accept(2.0, 2.0, None)
    hub.fire()
    assert pool.fired == ["soft"]


def test_who_is_no_process_of_the_pool_is_not_taken_out() -> None:
    assert take_out(SimpleNamespace(_process_by_pid=lambda _: (None, None), _state=billiard_pool.RUN), 1) is None


def test_celerys_pool_has_what_we_use_of_it() -> None:
    """Timers that call the pool's methods by name, and what tells whether a process is idle."""
    timers = inspect.getsource(AsynPool._create_timelimit_handlers)
    assert "soft, self._on_soft_timeout, R._job, soft, hard, hub," in timers
    assert "hard, self._on_hard_timeout, R._job," in timers
    assert "trefs = self._tref_for_id" in timers
    assert "self.on_timeout_set = on_timeout_set" in timers
    assert "hard - soft, self._on_hard_timeout, job," in inspect.getsource(AsynPool._on_soft_timeout)
    writes = inspect.getsource(AsynPool._create_write_handlers)
    assert "def on_inqueue_close(fd, proc):" in writes
    assert "if ready_fd not in all_inqueues:" in writes
    assert "mark_worker_as_busy(ready_fd)" in writes
    for name in ("_waiting_to_start", "_all_inqueues", "_busy_workers", "_active_writes"):
        assert f"self.{name} = set()" in inspect.getsource(AsynPool.__init__)
    assert "_controlled_termination" in inspect.getsource(billiard_process.BaseProcess.terminate_controlled)
    accepted = inspect.getsource(billiard_pool.ApplyResult._ack)
    assert accepted.index("self._worker_pid = pid") < accepted.index("self._on_timeout_set(self")
    assert "self._time_accepted = time_accepted" in accepted
    assert "now=monotonic" in inspect.getsource(billiard_pool.Worker.workloop)
    assert "threading.get_ident() != self._loop_thread" in inspect.getsource(kombu_hub.Hub.call_soon)
