"""How many jobs a process of the pool is handed, and what can be taken back of them."""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from resource_guard.pool_hands import Hands, hand_out, in_one_write, let_follow, turn_lightly, withdraw


@dataclass(eq=False)
class Pipe:
    """The end of a process's pipe at which it is read."""

    ends: tuple[int, int] = field(default_factory=os.pipe)
    closed: bool = False

    def fileno(self) -> int:
        if self.closed:
            raise OSError("handle is closed")
        return self.ends[0]


@dataclass(eq=False)
class Process:
    """As much of one as is asked for."""

    inqW_fd: int  # noqa: N815 - billiard's name
    alive: bool = True
    _reader: Pipe = field(default_factory=Pipe)

    @property
    def outq(self) -> Process:
        return self

    def _is_alive(self) -> bool:
        return self.alive


@dataclass(eq=False)
class Job:
    """As much of one as is asked for."""

    number: int
    pool: Pool
    may_follow: bool = False
    _write_to: Process | None = None
    _accepted: bool = False
    is_ready: bool = False

    def ready(self) -> bool:
        return self.is_ready

    def discard(self) -> None:
        self.pool._cache.pop(self.number)


@dataclass(eq=False)
class Pool:
    """As much of one as is asked for: two processes."""

    processes: list[Process] = field(default_factory=lambda: [Process(5), Process(6)])

    def __post_init__(self) -> None:
        self._all_inqueues = {process.inqW_fd for process in self.processes}
        self.outbound_buffer: deque[Job] = deque()
        self._cache: dict[int, Job] = {}
        self._active_writes: set[int] = set()
        self.written: list[tuple[int, int]] = []
        let_follow(self)
        self._busy_workers: Hands
        self.on_poll_start: Any
        self._create_write_handlers: Any
        self._mark_worker_as_available: Any

    def job(self, **facts: Any) -> Job:
        job = Job(len(self._cache), self, **facts)
        self._cache[job.number] = job
        return job

    def consolidate_callback(self, fds: list[int]) -> None:
        """The event loop's part: write a job to each of these pipes."""
        for fd in fds:
            self.written.append((fd, self.outbound_buffer.popleft().number))
            self._busy_workers.add(fd)


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    for process in pool.processes:
        for fd in process._reader.ends:
            os.close(fd)


def busy(pool: Pool) -> list[int]:
    inside = [fd for fd in sorted(pool._all_inqueues) if fd in pool._busy_workers]
    assert len(pool._busy_workers) == len(inside)
    return inside


def test_one_job_is_enough(pool: Pool) -> None:
    pool._busy_workers.add(5)
    pool.outbound_buffer.append(pool.job())
    assert busy(pool) == [5]
    pool._busy_workers.add(6)
    assert busy(pool) == [5, 6]
    pool._mark_worker_as_available(5)
    assert busy(pool) == [6]


def test_one_that_is_to_follow_goes_to_a_free_process_first(pool: Pool) -> None:
    pool.outbound_buffer.append(pool.job(may_follow=True))
    pool._busy_workers.add(5)
    assert busy(pool) == [5]
    pool._busy_workers.add(6)
    assert busy(pool) == []


def test_two_jobs_are_enough_for_everyone(pool: Pool) -> None:
    pool.outbound_buffer.append(pool.job(may_follow=True))
    for fd in (5, 6, 5):
        pool._busy_workers.add(fd)
    assert busy(pool) == [5]
    pool._mark_worker_as_available(5)
    assert busy(pool) == []


def test_a_process_that_has_ended_has_no_jobs(pool: Pool) -> None:
    for fd in (5, 5, 6):
        pool._busy_workers.add(fd)
    pool._busy_workers.discard(5)
    assert busy(pool) == [6]
    pool._mark_worker_as_available(5)  # the last word of a dead one
    assert busy(pool) == [6]


def test_after_celery_has_forgotten_jobs_those_count_that_have_been_written(pool: Pool) -> None:
    first, second = pool.processes
    for fd in (5, 5, 6):
        pool._busy_workers.add(fd)
    pool.job(_write_to=first)
    pool.job(_write_to=first)
    pool.job()
    second.alive = False
    pool.job(_write_to=second)
    pool._busy_workers.intersection_update([])
    assert busy(pool) == [5]
    pool._mark_worker_as_available(5)
    assert busy(pool) == [5]


def test_jobs_are_handed_to_free_processes_at_once(pool: Pool) -> None:
    pool.outbound_buffer += [pool.job() for _ in range(3)]
    pool._active_writes.add(5)
    hand_out(pool, pool)
    assert pool.written == [(6, 0)]
    pool._active_writes.clear()
    hand_out(pool, pool)
    hand_out(pool, pool)
    assert pool.written == [(6, 0), (5, 1)]
    assert [job.number for job in pool.outbound_buffer] == [2]


def test_followers_are_handed_out_at_once_too(pool: Pool) -> None:
    pool.outbound_buffer += [pool.job(may_follow=number > 1) for number in range(5)]
    hand_out(pool, pool)
    hand_out(pool, pool)
    assert [fd for fd, _ in pool.written] == [5, 6, 5, 6]
    assert [job.number for job in pool.outbound_buffer] == [4]


def test_a_job_that_was_never_written_can_be_taken_back(pool: Pool) -> None:
    job = pool.job(may_follow=True)
    pool.outbound_buffer.append(job)
    assert withdraw(pool, job)
    assert not pool.outbound_buffer
    assert not pool._cache


def test_a_job_can_be_taken_back_from_a_process_that_says_nothing(pool: Pool) -> None:
    job = pool.job(_write_to=pool.processes[0])
    assert withdraw(pool, job)
    assert not pool._cache


def test_while_there_is_something_to_read_it_may_have_begun(pool: Pool) -> None:
    process = pool.processes[0]
    job = pool.job(_write_to=process)
    os.write(process._reader.ends[1], b"something")
    assert not withdraw(pool, job)
    assert pool._cache == {job.number: job}


@pytest.mark.parametrize("how", ["begun", "done", "ended"])
def test_what_is_known_to_be_elsewhere_is_not_taken_back(pool: Pool, how: str) -> None:
    process = pool.processes[0]
    job = pool.job(_write_to=process)
    job._accepted, job.is_ready, process._reader.closed = how == "begun", how == "done", how == "ended"
    assert not withdraw(pool, job)
    assert pool._cache == {job.number: job}


@pytest.mark.parametrize(("body_bytes", "writes"), [(0, 1), (select.PIPE_BUF - 4, 1), (select.PIPE_BUF - 3, 2)])
def test_a_job_that_a_pipe_takes_whole_is_written_at_once(body_bytes: int, writes: int) -> None:
    header, body = b"head", bytes(body_bytes)
    job = SimpleNamespace(_payload=(memoryview(header), memoryview(body), body_bytes))
    in_one_write(job)
    first, rest, rest_bytes = job._payload
    assert bytes(first) + bytes(rest) == header + body
    assert (len(rest), 1 + bool(rest_bytes)) == (rest_bytes, writes)


def test_the_loop_attends_to_pipes_only_where_one_is_to_be_written_to_or_is_watched(pool: Pool) -> None:
    turns: list[str] = []

    def create(_hub: Any) -> None:
        pool.on_poll_start = lambda: turns.append("attended")

    pool._create_write_handlers = create
    turn_lightly(pool)
    hub = SimpleNamespace(writers={})
    pool._create_write_handlers(hub)
    pool.on_poll_start()
    assert turns == []
    pool.outbound_buffer.append(pool.job())
    pool.on_poll_start()
    assert turns == ["attended"]
    for fd in (5, 6):
        pool._busy_workers.add(fd)
    pool.on_poll_start()
    assert turns == ["attended"]
    hub.writers[5] = "whoever waits to write to it"
    pool.on_poll_start()
    assert turns == ["attended"] * 2
