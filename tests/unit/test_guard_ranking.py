"""Whom eviction takes first: a table for each rule, in the order in which they count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resource_guard.ranking import Candidate, rank_for_eviction

MB = 1_000_000
ONE = Candidate(
    key=1, pid=11, used_bytes=100 * MB, reserved_bytes=200 * MB, rerunnable=True, priority=5, started_at=1000.0
)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param({"used_bytes": 201 * MB}, {}, id="over its reservation"),
        pytest.param({"used_bytes": 201 * MB, "rerunnable": False}, {}, id="even if it can't be run again"),
        pytest.param({}, {"rerunnable": False}, id="may be run again"),
        pytest.param({"priority": 9}, {"rerunnable": False, "priority": 0}, id="even if it is more urgent"),
        pytest.param({"priority": 4}, {}, id="less urgent"),
        pytest.param({"priority": 4, "started_at": 900.0}, {}, id="even if it is older"),
        pytest.param({"started_at": 1001.0}, {}, id="youngest"),
        pytest.param({"started_at": 1001.0, "used_bytes": 1 * MB}, {}, id="even if it is smaller"),
        pytest.param({"used_bytes": 101 * MB}, {}, id="biggest"),
        pytest.param({"used_bytes": 101 * MB, "started_at": 1000.2}, {"started_at": 1000.9}, id="of those as young"),
    ],
)
def test_the_first_of_two_goes(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Each pair differs in one thing, and where it says 'even if' also in one that counts less."""
    victim, spared = replace(ONE, **first), replace(ONE, key=2, **second)
    assert rank_for_eviction([victim, spared]) == [victim, spared]
    assert rank_for_eviction([spared, victim]) == [victim, spared]


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        key=st.integers(0, 1000),
        pid=st.just(1),
        used_bytes=st.integers(0, 3),
        reserved_bytes=st.integers(0, 3),
        rerunnable=st.booleans(),
        priority=st.integers(0, 9),
        started_at=st.floats(0, 3),
    ),
    unique_by=lambda candidate: candidate.key,
)


@given(CANDIDATES, st.randoms())
def test_the_order_asked_in_does_not_matter_and_nobody_is_lost(candidates: list[Candidate], random: Any) -> None:
    """Two looks at the same tasks name the same victim."""
    shuffled = list(candidates)
    random.shuffle(shuffled)
    assert rank_for_eviction(shuffled) == rank_for_eviction(candidates)
    assert sorted(candidates, key=lambda one: one.key) == sorted(shuffled, key=lambda one: one.key)
