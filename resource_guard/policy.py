"""When to pause and when to resume: a pure function of limits, memory of the past, and one observation.

No clock and no I/O: time is what the observation says. Two things keep it from flapping: the marks for resuming lie
apart from those for pausing, and a pause lasts at least `rest_s`. Pausing never waits.
"""

from __future__ import annotations

from resource_guard.limits import Limits
from resource_guard.observation import Action, Decision, Observation, Pressure, State


def decide(limits: Limits, state: State, seen: Observation) -> tuple[State, Decision]:
    """The state after `seen`, and what to do about it."""
    pressure = pressure_of(limits, seen)
    if state.paused_at is None:
        if pressure is Pressure.OK:
            return state, Decision(action=Action.NONE, pressure=pressure)
        return State(paused_at=seen.at), Decision(
            action=Action.PAUSE, pressure=pressure, reason=_why_pause(limits, seen)
        )
    if reason := _why_stay_paused(limits, state.paused_at, seen):
        return state, Decision(action=Action.NONE, pressure=pressure, reason=reason)
    return State(), Decision(action=Action.RESUME, pressure=pressure, reason=_why_resume(limits, seen))


def pressure_of(limits: Limits, seen: Observation) -> Pressure:
    """How tight memory is in `seen`, whatever was before."""
    if seen.tree_bytes >= limits.memory_bytes:
        return Pressure.HARD
    if seen.tree_bytes >= limits.soft_bytes or seen.available_bytes < limits.free_bytes:
        return Pressure.SOFT
    return Pressure.OK


def _why_pause(limits: Limits, seen: Observation) -> str:
    if seen.tree_bytes >= limits.soft_bytes:
        return f"{_tree(seen)} is over the soft limit {_share(limits, limits.soft_bytes, limits.soft_fraction)}"
    return f"{_available(seen)} is below the {_size(limits.free_bytes)} that must stay free"


def _why_stay_paused(limits: Limits, paused_at: float, seen: Observation) -> str:
    if seen.tree_bytes >= limits.resume_bytes:
        return f"{_tree(seen)} is not yet below {_share(limits, limits.resume_bytes, limits.resume_fraction)}"
    if seen.available_bytes < limits.comfortable_bytes:
        return f"{_available(seen)} is not yet over {_size(limits.comfortable_bytes)}"
    if seen.at < paused_at + limits.rest_s:
        return f"memory is free again, but a pause lasts at least {limits.rest_s:g} s"
    return ""


def _why_resume(limits: Limits, seen: Observation) -> str:
    below = _share(limits, limits.resume_bytes, limits.resume_fraction)
    return f"{_tree(seen)} is below {below}, {_available(seen)}"


def _tree(seen: Observation) -> str:
    return f"memory of this worker's processes {_size(seen.tree_bytes)}"


def _available(seen: Observation) -> str:
    return f"memory available on this machine {_size(seen.available_bytes)}"


def _share(limits: Limits, mark_bytes: int, fraction: float) -> str:
    return f"{_size(mark_bytes)} ({fraction:.0%} of {_size(limits.memory_bytes)})"


def _size(size_bytes: int) -> str:
    # Three decimals for GB: reading and limit must not look equal when they are megabytes apart.
    return (
        f"{size_bytes / 1e6:.0f} MB" if size_bytes < 1e9 else f"{size_bytes / 1e9:.3f}".rstrip("0").rstrip(".") + " GB"
    )
