"""Which running task is ended first when memory has to be free at once: a pure function."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Tasks that started within the same so many seconds count as equally old, so that among them the biggest is ended.
SAME_AGE_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A running task that could be ended."""

    #: Tells it from every other.
    key: int
    #: The pool process it runs in.
    pid: int
    used_bytes: int
    #: What was set aside for it.
    reserved_bytes: int
    #: Whether it may run again without harm.
    rerunnable: bool
    #: 9 is the most urgent.
    priority: int
    started_at: float


def rank_for_eviction(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The best victim first: who takes more than its share, loses least by it, and frees most."""
    return sorted(candidates, key=_reluctance)


def _reluctance(candidate: Candidate) -> tuple[bool, bool, int, float, int, int]:
    return (
        candidate.used_bytes <= candidate.reserved_bytes,
        not candidate.rerunnable,
        candidate.priority,
        -(candidate.started_at // SAME_AGE_S),
        -candidate.used_bytes,
        candidate.key,
    )
