"""Which task starts next: plain tables and properties."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resource_guard.admission import Admission, Applicant, Room

MB = 1_000_000


@pytest.fixture
def admission() -> Admission:
    return Admission(pass_over_s=10.0)


_keys = count(1)


def task(
    memory_mb: float = 10,
    *,
    at: float = 0.0,
    priority: int = 0,
    share: str = "",
    cores: float = 0.0,
    short: bool = False,
) -> Applicant:
    return Applicant(
        key=next(_keys),
        memory_bytes=int(memory_mb * MB),
        cpu_cores=cores,
        priority=priority,
        share=share,
        arrived_at=at,
        short=short,
    )


def room(memory_mb: float = 1000, slots: int = 100, cores: float = float("inf"), followers: int = 0) -> Room:
    return Room(memory_bytes=memory_mb * MB, slots=slots, cpu_cores=cores, followers=followers)


def started(admission: Admission, where: Room, now: float = 0.0) -> list[int]:
    keys = []
    while (applicant := admission.next(where, now)) is not None:
        keys.append(applicant.key)
    return keys


def test_the_most_urgent_goes_first_then_the_oldest(admission: Admission) -> None:
    late, early, urgent = task(at=2.0), task(at=1.0), task(at=3.0, priority=9)
    for one in (early, late, urgent):
        admission.offer(one)
    assert started(admission, room()) == [urgent.key, early.key, late.key]


def test_only_what_fits_starts_and_the_rest_when_there_is_room(admission: Admission) -> None:
    first, second = task(600), task(600)
    admission.offer(first)
    admission.offer(second)
    assert started(admission, room(1000)) == [first.key]
    assert admission.blocked
    admission.finished(first.key)
    assert started(admission, room(1000)) == [second.key]
    assert not admission.blocked


def test_smaller_tasks_pass_a_large_one_for_a_bounded_time(admission: Admission) -> None:
    running, large, small, later = task(600), task(600), task(100), task(100)
    for one in (running, large, small):
        admission.offer(one)
    assert started(admission, room(1000), now=0.0) == [running.key, small.key]
    admission.offer(later)
    assert started(admission, room(1000), now=10.5) == []
    admission.finished(running.key)
    assert started(admission, room(1000), now=11.0) == [large.key, later.key]


def test_runs_take_turns(admission: Admission) -> None:
    big = [task(share="big") for _ in range(20)]
    small = [task(share="small") for _ in range(3)]
    for one in (*big, *small):
        admission.offer(one)
    order = started(admission, room())
    assert max(order.index(one.key) for one in small) <= 6
    assert [key for key in order if key in {one.key for one in big}] == [one.key for one in big]


def test_a_run_that_comes_late_has_no_turns_in_store(admission: Admission) -> None:
    one_slot = room(slots=1)
    for share in ("old", "older"):
        for _ in range(10):
            admission.offer(task(share=share))
    for _ in range(10):
        applicant = admission.next(one_slot, 0.0)
        assert applicant
        admission.finished(applicant.key)
    newcomers = [task(share="new") for _ in range(6)]
    for one in newcomers:
        admission.offer(one)
    shares = []
    for _ in range(6):
        applicant = admission.next(one_slot, 0.0)
        assert applicant
        shares.append(applicant.share)
        admission.finished(applicant.key)
    assert 2 <= shares.count("new") <= 3


def test_no_more_than_there_are_slots(admission: Admission) -> None:
    for _ in range(5):
        admission.offer(task())
    assert len(started(admission, room(slots=3))) == 3


def test_tasks_start_while_any_core_is_left_and_those_that_need_none_at_any_time(admission: Admission) -> None:
    """With 1.2 cores a second busy task starts, so that none of them idles; a third would only slow both down."""
    busy, wide, third, waits = task(cores=1), task(cores=4), task(cores=1), task()
    for one in (busy, wide, third, waits):
        admission.offer(one)
    assert started(admission, room(cores=1.2)) == [busy.key, wide.key, waits.key]
    admission.finished(busy.key)
    assert started(admission, room(cores=1.2)) == []
    admission.finished(wide.key)
    assert started(admission, room(cores=1.2)) == [third.key]


def test_one_that_has_to_run_alone_starts_where_there_is_nearly_enough_or_after_a_while(admission: Admission) -> None:
    """Nothing runs whose end would make room: what the worker itself takes may have grown for good."""
    large = task(1000)
    admission.offer(large)
    assert started(admission, room(899), now=0.0) == []
    assert started(admission, room(899), now=10.0) == []
    assert started(admission, room(899), now=10.5) == [large.key]
    admission.finished(large.key)
    admission.offer(again := task(1000))
    assert started(admission, room(901)) == [again.key]


def test_a_task_that_takes_more_than_it_reserved_leaves_less_to_others(admission: Admission) -> None:
    first, second = task(100), task(600)
    admission.offer(first)
    assert started(admission, room(1000)) == [first.key]
    admission.takes(first.key, 500 * MB)
    admission.takes(first.key, 300 * MB)  # it is not known to have given anything back
    admission.offer(second)
    assert started(admission, room(1000)) == []
    admission.finished(first.key)
    assert admission.reserved_bytes == 0
    assert started(admission, room(1000)) == [second.key]


def test_what_is_withdrawn_is_told_oldest_first_and_starts_no_more(admission: Admission) -> None:
    second, first = task(at=2.0), task(at=1.0, share="a")
    admission.offer(second)
    admission.offer(first)
    assert admission.withdraw(but_blocked=False) == [first.key, second.key]
    assert started(admission, room()) == []


@given(
    st.lists(
        st.tuples(st.integers(1, 900), st.integers(0, 9), st.sampled_from("abc"), st.floats(0.0, 2.0)),
        min_size=1, max_size=40,
    ),
    st.integers(1, 5),
)  # fmt: skip
def test_everything_that_fits_alone_runs_in_the_end_and_never_more_than_fits(
    tasks: list[tuple[int, int, str, float]], slots: int
) -> None:
    admission, where, running, done = Admission(pass_over_s=3.0), room(900, slots, 2.0), [], 0
    for memory_mb, priority, share, cores in tasks:
        admission.offer(task(memory_mb, priority=priority, share=share, cores=cores))
    now = 0.0
    while done < len(tasks):
        while (applicant := admission.next(where, now)) is not None:
            running.append(applicant)
        assert running
        assert len(running) <= slots
        assert sum(one.memory_bytes for one in running) == admission.reserved_bytes <= 900 * MB
        busy = [one.cpu_cores for one in running if one.cpu_cores >= 0.05]
        assert sum(busy[:-1]) < 2.0
        admission.finished(running.pop(0).key)
        done += 1
        now += 1.0
    assert admission.reserved_bytes == 0
    assert admission.running == admission.waiting == 0


def test_short_tasks_follow_short_ones(admission: Admission) -> None:
    """Whatever cores they keep busy: they have those of the one they follow."""
    tasks = [task(short=True, cores=1.0) for _ in range(6)]
    for one in tasks:
        admission.offer(one)
    where = room(slots=2, cores=2.0, followers=2)
    assert started(admission, where) == [one.key for one in tasks[:4]]
    admission.finished(tasks[0].key)
    assert started(admission, where) == [tasks[4].key]


def test_nothing_follows_where_nothing_may(admission: Admission) -> None:
    for _ in range(4):
        admission.offer(task(short=True))
    assert len(started(admission, room(slots=2))) == 2


def test_nothing_follows_a_task_that_may_take_long(admission: Admission) -> None:
    long, *short = task(), task(short=True), task(short=True)
    for one in (long, *short):
        admission.offer(one)
    where = room(slots=2, followers=2)
    assert started(admission, where) == [long.key, short[0].key]
    admission.finished(long.key)
    assert started(admission, where) == [short[1].key]


def test_a_task_that_may_take_long_follows_nothing_and_is_not_passed(admission: Admission) -> None:
    running, long, short = task(short=True), task(), task(short=True)
    for one in (running, long, short):
        admission.offer(one)
    where = room(slots=1, followers=1)
    assert started(admission, where) == [running.key]
    admission.finished(running.key)
    assert started(admission, where) == [long.key]


def test_what_follows_has_its_memory_reserved_too(admission: Admission) -> None:
    first, second = task(600, short=True), task(600, short=True)
    admission.offer(first)
    admission.offer(second)
    assert started(admission, room(1000, slots=1, followers=1)) == [first.key]
    assert not admission.blocked
