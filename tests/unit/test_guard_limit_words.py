"""Limits as a person writes them for a running system: what is understood, and what is said of the rest."""

from __future__ import annotations

import pytest

from resource_guard.control import parse_limits


def test_limits_are_written_as_in_the_settings() -> None:
    assert parse_limits(["memory=6GB", "cpu=50%", "processes=200", "disk_free=0"]) == {
        "memory": 6_000_000_000,
        "cpu": 0.5,
        "processes": 200,
        "disk_free": 0,
    }


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["memory=6"], "memory: want 100MB to 1000TB, got '6'"),
        (["memory=much"], "memory: want a size like 8GB or 512MiB, got 'much'"),
        (["cpu=0%"], "cpu: want 1% to 100%, got '0%'"),
        (["cpu=120%"], "cpu: want a share like 60% or 0.6, got '120%'"),
        (["processes=many"], "processes: want a whole number, got 'many'"),
        (["processes=5"], "processes: input should be greater than or equal to 10, got '5'"),
        (["memory"], "want RESOURCE=LIMIT, as memory=6GB, with one of memory, memory_free, cpu, disk_free, "),
        (["broker_memory=1GB"], "got 'broker_memory=1GB'"),
        (["cpu=50%", "cpu=60%"], "cpu is given twice"),
    ],
)
def test_what_makes_no_sense_is_told_with_what_would(words: list[str], says: str) -> None:
    """The bounds are those of the settings: `memory=6`, a slip for 6GB, would end everything that runs."""
    with pytest.raises(ValueError, match=r"want|given|input") as refused:
        parse_limits(words)
    assert says in str(refused.value)
