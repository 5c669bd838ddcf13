"""Whom the evictor ends, in which order, and what becomes of them: real processes that hold nothing but their place."""

from __future__ import annotations

import itertools
import logging
import subprocess
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from resource_guard.actions import TreeEnding
from resource_guard.admission import Applicant
from resource_guard.evictor import Evictor
from resource_guard.gate import Ended, Started
from resource_guard.limits import Limits
from resource_guard.observation import Decision, Level, Observation, ProcessUse, Reading, Resource
from resource_guard.reservations import Reservation
from tests.waiting import wait_until

MB = 1_000_000
LIMITS = Limits(memory_bytes=1000 * MB)
CAPACITY = 800 * MB

Run = Callable[..., Started]


class Tasks(list[Started]):
    """What runs, as a test says."""

    def started(self) -> list[Started]:
        return [one for one in self if one.request.on_end is not None]

    def capacity_bytes(self) -> int:
        return CAPACITY


@pytest.fixture
def tasks() -> Tasks:
    return Tasks()


@pytest.fixture
def evicted() -> list[str]:
    return []


@pytest.fixture
def evictor(tasks: Tasks, evicted: list[str]) -> Evictor:
    return Evictor(tasks, on_evicted=lambda one, _: evicted.append(one.request.name))


@pytest.fixture
def run(tasks: Tasks) -> Iterator[Run]:
    """Let a task run in a process of its own."""
    processes: list[subprocess.Popen[bytes]] = []
    keys = itertools.count()

    def run(
        name: str,
        use_mb: int,
        *,
        reserved_mb: int = 100,
        cap_mb: int = 800,
        declared: bool = False,
        priority: int = 0,
        started_at: float = 0.0,
    ) -> Started:
        processes.append(subprocess.Popen(["sleep", "100"]))
        request: Any = SimpleNamespace(
            id=name, name=name, task=SimpleNamespace(acks_late=True), worker_pid=processes[-1].pid, ended=None,
            on_end=lambda *_: None,
        )  # fmt: skip
        tasks.append(
            Started(
                request=request,
                applicant=Applicant(key=next(keys), memory_bytes=reserved_mb * MB, priority=priority),
                reserved=Reservation(memory_bytes=reserved_mb * MB, cpu_cores=0.0, declared=declared),
                cap_bytes=cap_mb * MB,
                started_at=started_at,
                use_bytes=use_mb * MB,
            )
        )
        return tasks[-1]

    yield run
    for process in processes:
        process.kill()
        process.wait()


_clock = itertools.count()


def look(evictor: Evictor, memory_mb: int, level: Level | None = None, **levels: Level) -> None:
    """One look, at a machine whose tasks take so much together."""
    hard = Level.EVICT if memory_mb >= 950 else Level.OK
    decided = {Resource.MEMORY: hard if level is None else level} | {
        Resource(name): one for name, one in levels.items()
    }
    children = {
        one.pid: ProcessUse(pid=one.pid, rss_bytes=0, cpu_s=0.0, pids=tuple(range(one.pid, one.pid + 1 + index)))
        for index, one in enumerate(evictor._tasks.started())
        if one.pid
    }
    seen = Observation(
        at=float(next(_clock)),
        readings={Resource.MEMORY: Reading(value=memory_mb * MB, limit=1000 * MB)},
        children=children,
    )
    evictor.look(LIMITS, seen, Decision(levels=decided, reasons=dict.fromkeys(decided, "too much")))


def settle(evictor: Evictor, memory_mb: int = 500) -> None:
    """Look until nobody is being ended any more."""

    def look_again() -> bool:
        look(evictor, memory_mb)
        return not evictor.busy

    wait_until(look_again, what="the end of those who are being ended")


def test_below_the_hard_mark_nobody_is_ended(evictor: Evictor, run: Run) -> None:
    run("a", 400)
    look(evictor, 949)
    assert not evictor.busy


def test_only_as_many_as_it_takes_whoever_is_over_its_reservation_first(
    evictor: Evictor, run: Run, evicted: list[str]
) -> None:
    run("within", 300, reserved_mb=300, started_at=9.0)
    run("old over", 300, started_at=1.0)
    run("young over", 300, started_at=5.0)
    look(evictor, 960)
    settle(evictor)
    assert evicted == ["young over"]
    assert evictor.counts == {"evicted": 1}


def test_nobody_is_ended_for_nothing(evictor: Evictor, run: Run) -> None:
    """What is used is used by others: the broker, say."""
    run("a", 4, reserved_mb=1)
    look(evictor, 960)
    assert not evictor.busy


def test_the_next_is_not_ended_while_the_one_before_is_on_its_way_out(
    evictor: Evictor, run: Run, evicted: list[str]
) -> None:
    run("a", 300)
    run("b", 300, priority=9)
    for _ in range(2):
        look(evictor, 960)
    settle(evictor)
    assert evicted == ["a"]


def test_one_whose_end_would_not_be_enough_takes_another_with_it(
    evictor: Evictor, run: Run, evicted: list[str]
) -> None:
    run("a", 20, reserved_mb=10)
    run("b", 300, reserved_mb=300)
    look(evictor, 990)
    settle(evictor)
    assert sorted(evicted) == ["a", "b"]


def test_what_is_evicted_gets_more_the_next_time_if_it_took_more(evictor: Evictor, run: Run) -> None:
    over, within = run("over", 300), run("within", 90)
    look(evictor, 1500)
    assert over.request.ended == Ended(used_bytes=300 * MB, allowed_bytes=CAPACITY, reserve_bytes=600 * MB)
    assert within.request.ended == Ended(used_bytes=90 * MB, allowed_bytes=CAPACITY, reserve_bytes=100 * MB)


def test_one_that_takes_more_than_it_declared_has_failed_whatever_is_free(
    evictor: Evictor, run: Run, evicted: list[str]
) -> None:
    """Its programs, or memory that it shares, are counted by nobody but the guard."""
    liar = run("liar", 200, reserved_mb=100, cap_mb=142, declared=True)
    run("honest", 170, reserved_mb=100, cap_mb=142, declared=True)  # as far as is known: what it had before is not
    look(evictor, 400)
    assert liar.request.ended is None  # it may be what the task before it had, and go in this moment
    assert evictor.busy  # so it is looked at again soon
    look(evictor, 400)
    assert liar.request.ended == Ended(used_bytes=200 * MB, allowed_bytes=142 * MB, reserve_bytes=None)
    settle(evictor)
    assert evicted == ["liar"]
    assert evictor.counts == {"failed": 1}


def test_while_one_is_being_ended_the_others_take_no_more(
    evictor: Evictor, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are stopped first: to find what the first has started takes a while."""
    begun: list[str] = []
    freeze, step = TreeEnding.freeze, TreeEnding.step
    monkeypatch.setattr(TreeEnding, "freeze", lambda self: begun.append("freeze") or freeze(self))
    monkeypatch.setattr(TreeEnding, "step", lambda self, now: begun.append("step") or step(self, now))
    for name in ("first", "second"):
        run(name, 400, reserved_mb=100, cap_mb=142, declared=True)
    look(evictor, 850)
    assert begun == ["freeze", "freeze", "step", "step"]
    settle(evictor)
    assert evictor.counts == {"failed": 2}


def test_one_that_nobody_knows_may_take_more_than_its_cap_while_there_is_room(evictor: Evictor, run: Run) -> None:
    unknown = run("unknown", 300, cap_mb=200)
    look(evictor, 500)
    assert not evictor.busy
    look(evictor, 820)
    assert unknown.request.ended is not None
    assert unknown.request.ended.reserve_bytes == 600 * MB


def test_one_that_had_everything_and_wants_more_has_failed(evictor: Evictor, run: Run) -> None:
    greedy = run("greedy", 840, reserved_mb=800, cap_mb=800)
    look(evictor, 920, Level.PAUSE)
    assert greedy.request.ended == Ended(used_bytes=840 * MB, allowed_bytes=CAPACITY, reserve_bytes=None)


def test_one_that_ends_by_itself_meanwhile_is_spared(evictor: Evictor, run: Run, evicted: list[str]) -> None:
    one = run("a", 300)
    evictor._tasks.started = lambda: [one]  # as it was when somebody looked
    one.request.on_end = None
    look(evictor, 960)
    settle(evictor)
    assert evicted == []
    assert one.request.ended is None


def test_too_many_processes_end_the_task_that_has_most_of_them(evictor: Evictor, run: Run, evicted: list[str]) -> None:
    run("few", 10)
    run("many", 10)
    look(evictor, 300, processes=Level.EVICT)
    settle(evictor)
    assert evicted == ["many"]


def test_a_dry_run_says_what_it_would_do_once(
    tasks: Tasks, run: Run, evicted: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    evictor = Evictor(tasks, dry_run=True, on_evicted=lambda one, _: evicted.append(one.request.name))
    run("a", 300)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            look(evictor, 960)
    assert [record.getMessage() for record in caplog.records] == ["would end task a[a]: too much"]
    assert not evictor.busy
    assert tasks[0].request.ended is None
