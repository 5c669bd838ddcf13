"""How tight each resource is: a pure function of limits, memory of the past, and one observation.

No clock and no I/O: time is what the observation says. Three things keep a level from flapping: the mark that ends it
lies below those that begin it, it ends only after several readings in a row, and a pause lasts at least `rest_s`.
Tightening never waits for any of them.

`EVICT` alone has no memory: it holds while the reading itself is at or above the hard mark, and not a look longer.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from types import MappingProxyType

from resource_guard import reasons
from resource_guard.limits import Limits, Marks
from resource_guard.observation import Change, Decision, Level, Observation, Reading, Resource

#: From a look to the moment when a pause has taken hold: a tick of 0.1 s, and 0.2 s for what was just about to start.
REACTION_S = 0.3
# Growth is the median of all slopes between so many readings of so many seconds: one jump is not growth.
_SLOPE_READINGS = 10
_SLOPE_READINGS_LEAST = 5
_SLOPE_WINDOW_S = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """What is remembered of one resource."""

    level: Level = Level.OK
    #: Since when it has been at PAUSE or above, if it is.
    paused_at: float | None = None
    #: Readings in a row that were at or above the marks of THROTTLE, PAUSE and EVICT.
    over: tuple[int, int, int] = (0, 0, 0)
    #: Readings in a row that were below `resume`.
    clear: int = 0
    #: When and how much, oldest first; only of what is looked ahead for.
    recent: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class State:
    """What the policy remembers from one observation to the next."""

    tracks: Mapping[Resource, Track] = field(default_factory=lambda: MappingProxyType({}))


def decide(limits: Limits, state: State, seen: Observation) -> tuple[State, Decision]:
    """The state after `seen`, and the levels that hold from now on."""
    tracks: dict[Resource, Track] = {}
    why: dict[Resource, str] = {}
    changes: list[Change] = []
    for resource in [*limits.marks, *(gone for gone in state.tracks if gone not in limits.marks)]:
        before = state.tracks.get(resource, Track())
        if resource not in limits.marks:
            after, reason = Track(), reasons.unwatched(resource)
        elif (reading := seen.readings.get(resource)) is None:
            after, reason = _without_reading(resource, limits.marks[resource], before)
        else:
            after, reason = _with_reading(resource, limits.marks[resource], before, reading, seen)
        if resource in limits.marks:
            tracks[resource] = after
        if after.level is not before.level:
            changes.append(Change(resource=resource, before=before.level, after=after.level, reason=reason))
        if after.level is not Level.OK:
            why[resource] = reason
    levels = {resource: track.level for resource, track in tracks.items()}
    return State(tracks=tracks), Decision(levels=levels, reasons=why, changes=tuple(changes))


def _without_reading(resource: Resource, marks: Marks, before: Track) -> tuple[Track, str]:
    """A gap ends no level, and ends no running work either."""
    level = min(before.level, _worst_held(marks))
    return replace(before, level=level, recent=()), reasons.unread(resource)


def _with_reading(
    resource: Resource, marks: Marks, before: Track, reading: Reading, seen: Observation
) -> tuple[Track, str]:
    at = seen.at
    recent = _remembered(before.recent, reading, at) if resource is Resource.MEMORY else ()
    growth_per_s = _growth_per_s(recent)
    over_now = marks.level_of(reading.fraction)
    ahead = over_now < Level.PAUSE and _would_be_over(marks, reading, growth_per_s, seen.expected_bytes)
    wanted = Level.PAUSE if ahead else over_now
    throttle, pause, evict = before.over
    over = (
        throttle + 1 if wanted >= Level.THROTTLE else 0,
        pause + 1 if wanted >= Level.PAUSE else 0,
        evict + 1 if wanted >= Level.EVICT else 0,
    )
    reached = Level(max((level for level, count in enumerate(over, start=1) if count >= marks.readings_on), default=0))
    clear = before.clear + 1 if reading.fraction < marks.resume and not ahead else 0
    rested = before.paused_at is None or at >= before.paused_at + marks.rest_s
    held = Level.OK if clear >= marks.readings_off and rested else min(before.level, _worst_held(marks))
    level = max(held, reached)
    paused_at = None if level < Level.PAUSE else at if before.paused_at is None else before.paused_at
    after = Track(level=level, paused_at=paused_at, over=over, clear=clear, recent=recent)
    if level is Level.OK:
        return after, reasons.cleared(resource, marks, reading) if before.level is not Level.OK else ""
    if ahead:
        return after, reasons.growing(resource, marks, reading, growth_per_s, REACTION_S)
    if clear:
        return after, reasons.clearing(resource, marks, reading, clear)
    if over_now < level:
        return after, reasons.held(resource, marks, reading)
    return after, reasons.over(resource, marks, over_now, reading)


def _worst_held(marks: Marks) -> Level:
    """The worst level that lasts beyond the reading which caused it."""
    return Level.PAUSE if marks.pause is not None else Level.THROTTLE


def _remembered(
    recent: tuple[tuple[float, float], ...], reading: Reading, at: float
) -> tuple[tuple[float, float], ...]:
    earlier = [one for one in recent[1 - _SLOPE_READINGS :] if at - _SLOPE_WINDOW_S <= one[0] < at]
    return (*earlier, (at, reading.value))


def _growth_per_s(recent: tuple[tuple[float, float], ...]) -> float:
    """The median slope (Theil and Sen); 0 while there are too few readings to tell."""
    if len(recent) < _SLOPE_READINGS_LEAST:
        return 0.0
    return statistics.median(
        (second[1] - first[1]) / (second[0] - first[0]) for first, second in combinations(recent, 2)
    )


def _would_be_over(marks: Marks, reading: Reading, growth_per_s: float, expected_bytes: float) -> bool:
    """Whether it would reach the hard mark before a pause, if one began only at the soft mark, had taken hold.

    Tasks that have just begun grow fast, and stop where it was known that they would.
    """
    if marks.pause is None or growth_per_s <= 0:
        return False
    ahead = min(reading.value + growth_per_s * REACTION_S, max(reading.value, expected_bytes))
    return ahead >= marks.hard * reading.limit
