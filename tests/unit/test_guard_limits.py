"""Limits are checked once, with the relations between them; a wrong one never reaches a running worker."""

from __future__ import annotations

import pytest

from resource_guard import Limits


def test_marks_are_shares_of_the_whole_limit() -> None:
    """Soft and resume follow `memory_bytes`, so a user changes one number."""
    limits = Limits(memory_bytes=300_000_000, soft_fraction=0.85, resume_fraction=0.75, free_bytes=500_000_000)
    assert (limits.soft_bytes, limits.resume_bytes) == (255_000_000, 225_000_000)
    assert limits.comfortable_bytes == 550_000_000


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"memory_bytes": 0}, "memory_bytes"),
        ({"resume_fraction": 0.85}, "resume_fraction 0.85 and soft_fraction 0.85"),
        ({"resume_fraction": 0.0}, "0 < resume_fraction"),
        ({"soft_fraction": 1.01}, "soft_fraction <= 1"),
        ({"free_bytes": -1}, "free_bytes"),
        ({"rest_s": -0.1}, "rest_s"),
    ],
)
def test_contradicting_limits_are_refused_by_name(wrong: dict[str, float], named: str) -> None:
    """The message names the field and the value."""
    with pytest.raises(ValueError, match=named):
        Limits(**{"memory_bytes": 300_000_000, **wrong})  # type: ignore[arg-type]
