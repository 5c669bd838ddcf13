"""What is reserved for a task, what it may take at most, and what it gets when it wanted more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resource_guard.profiles import Profile
from resource_guard.reservations import (
    CAP_MARGIN_BYTES,
    TRUSTED_RUNS,
    Allowance,
    Reservation,
    allow,
    more_than,
    reserve,
)

MB = 1_000_000
CAPACITY = 1600 * MB


def known(memory_mb: int, runs: int = 20, cores: float = 0.5) -> Profile:
    return Profile(
        name="a",
        runs=runs,
        memory_bytes=memory_mb * MB,
        peak_bytes=memory_mb * MB,
        cpu_cores=cores,
        wall_s=1.0,
        mostly_s=1.0,
    )


def reserved(
    *, declared_mb: int | None = None, profile: Profile | None = None, evictions: int = 0, after_mb: int = 0
) -> Reservation:
    return reserve(
        declared_bytes=None if declared_mb is None else declared_mb * MB,
        declared_cores=None,
        known=profile,
        evictions=evictions,
        after_eviction_bytes=after_mb * MB,
        capacity_bytes=CAPACITY,
    )


@pytest.mark.parametrize(
    ("given", "memory_mb"),
    [
        (reserved(declared_mb=300, profile=known(50)), 300),  # its author's word counts more than what was seen
        (reserved(declared_mb=2000), 2000),  # also when it can't be had: who asks for it is told so
        (reserved(profile=known(50)), 50),
        (reserved(profile=known(5000)), 1600),  # what was learned elsewhere may not fit here: then it runs alone
        (reserved(), 100),  # nobody knows: a sixteenth
        (reserved(profile=known(50), evictions=1, after_mb=400), 400),
        (reserved(evictions=1, after_mb=9000), 1600),
    ],
)
def test_what_is_reserved(given: Reservation, memory_mb: int) -> None:
    assert given.memory_bytes == memory_mb * MB


def test_cores_are_declared_or_learned_or_none() -> None:
    assert reserved().cpu_cores == 0.0
    assert reserved(profile=known(1, cores=0.9)).cpu_cores == 0.9


def test_wanting_more_than_declared_is_a_failure() -> None:
    allowed = allow(reserved(declared_mb=100), free_bytes=1000 * MB, capacity_bytes=CAPACITY)
    assert allowed == Allowance(cap_bytes=110 * MB + CAP_MARGIN_BYTES, next_bytes=None)


def test_a_task_that_nobody_knows_gets_all_that_is_free_and_then_all_there_is() -> None:
    """It fails for want of memory only where there is none: the second time it runs alone."""
    first = reserved()
    allowed = allow(first, free_bytes=700 * MB, capacity_bytes=CAPACITY)
    assert allowed == Allowance(cap_bytes=700 * MB, next_bytes=1400 * MB)
    second = reserved(evictions=1, after_mb=1400)
    assert allow(second, free_bytes=1400 * MB, capacity_bytes=CAPACITY).next_bytes == CAPACITY
    third = reserved(evictions=2, after_mb=1600)
    assert allow(third, free_bytes=CAPACITY, capacity_bytes=CAPACITY) == Allowance(cap_bytes=CAPACITY, next_bytes=None)


def test_one_that_is_well_known_is_stopped_at_twice_what_it_ever_took() -> None:
    allowed = allow(reserved(profile=known(100)), free_bytes=1500 * MB, capacity_bytes=CAPACITY)
    assert allowed == Allowance(cap_bytes=200 * MB + CAP_MARGIN_BYTES, next_bytes=2 * (200 * MB + CAP_MARGIN_BYTES))
    barely = allow(reserved(profile=known(100, TRUSTED_RUNS - 1)), free_bytes=1500 * MB, capacity_bytes=CAPACITY)
    assert barely.cap_bytes == 1500 * MB


@given(st.integers(0, 30), st.integers(1, 1600), st.integers(0, 1600))
def test_an_undeclared_task_is_tried_again_a_few_times_at_most(runs: int, learned_mb: int, free_mb: int) -> None:
    """Whatever was learned and whatever is free: each time with more, until it has had everything."""
    profile = known(learned_mb, runs) if runs else None
    evictions, after_mb, caps = 0, 0, []
    while True:
        now = reserved(profile=profile, evictions=evictions, after_mb=after_mb)
        allowed = allow(now, free_bytes=max(free_mb * MB, now.memory_bytes), capacity_bytes=CAPACITY)
        caps.append(allowed.cap_bytes)
        assert allowed.cap_bytes <= CAPACITY
        if allowed.next_bytes is None:
            break
        assert allowed.next_bytes > now.memory_bytes
        evictions, after_mb = evictions + 1, allowed.next_bytes // MB + 1
    assert caps[-1] == CAPACITY
    assert len(caps) <= 3


def test_twice_as_much_then_all() -> None:
    assert more_than(reserved(profile=known(100)), 300 * MB, CAPACITY) == 600 * MB
    assert more_than(reserved(profile=known(100)), 1300 * MB, CAPACITY) == CAPACITY
    assert more_than(reserved(evictions=1, after_mb=200), 300 * MB, CAPACITY) == CAPACITY
