"""Why a level is what it is: sentences with value, limit and cause, for logs and for people."""

from __future__ import annotations

from resource_guard.limits import Marks
from resource_guard.observation import Level, Reading, Resource


def over(resource: Resource, marks: Marks, level: Level, reading: Reading) -> str:
    """It has reached the mark of `level`."""
    if reading.floor:
        return f"{_now(resource, reading)} is below the {_amount(resource, reading, reading.limit)} that must stay free"
    name = "hard" if level is Level.EVICT else "soft"
    return (
        f"{_now(resource, reading)} is over the {name} limit {_mark(resource, reading, marks.of(level) or marks.hard)}"
    )


def growing(resource: Resource, marks: Marks, reading: Reading, growth_per_s: float, within_s: float) -> str:
    """It has not, but is about to reach the hard mark."""
    rate = _amount(resource, reading, growth_per_s)
    return (
        f"{_now(resource, reading)} grows by {rate}/s: within {within_s:g} s it would be over the hard limit "
        f"{_mark(resource, reading, marks.hard)}"
    )


def held(resource: Resource, marks: Marks, reading: Reading) -> str:
    """It has been over a mark, and is not yet well below."""
    if reading.floor:
        return f"{_now(resource, reading)} is not yet over {_amount(resource, reading, reading.limit / marks.resume)}"
    return f"{_now(resource, reading)} is not yet below {_mark(resource, reading, marks.resume)}"


def clearing(resource: Resource, marks: Marks, reading: Reading, readings: int) -> str:
    """All is well again, but has been for too few readings, or the pause has been too short."""
    if readings < marks.readings_off:
        return f"{cleared(resource, marks, reading)}, but seen only {readings} of {marks.readings_off} times"
    return f"{cleared(resource, marks, reading)}, but a pause lasts at least {marks.rest_s:g} s"


def cleared(resource: Resource, marks: Marks, reading: Reading) -> str:
    """All is well again."""
    if reading.floor:
        return f"{_now(resource, reading)} is over {_amount(resource, reading, reading.limit / marks.resume)}"
    return f"{_now(resource, reading)} is below {_mark(resource, reading, marks.resume)}"


def unread(resource: Resource) -> str:
    """There is no reading."""
    return f"{_NAMES[resource]} can't be read at the moment, so nothing changes"


def unwatched(resource: Resource) -> str:
    """Nobody looks any more."""
    return f"{_NAMES[resource]} is not watched any more"


_NAMES = {
    Resource.MEMORY: "memory of this worker's processes",
    Resource.MEMORY_FREE: "memory available on this machine",
    Resource.CPU: "CPU used by this worker's processes",
    Resource.DISK_FREE: "free space",
    Resource.DISK_QUOTA: "data that AgentLink keeps",
    Resource.BROKER_MEMORY: "memory of the broker's data",
    Resource.PROCESSES: "processes of this worker",
}
_NAMES_WITH_PLACE = {
    Resource.MEMORY: "memory of control group {where}",
    Resource.MEMORY_FREE: "memory left in control group {where}",
    Resource.CPU: "CPU used by this worker's processes, of what control group {where} allows,",
    Resource.DISK_FREE: "free space on {where}",
    Resource.DISK_QUOTA: "data that AgentLink keeps in {where}",
    Resource.PROCESSES: "processes in control group {where}",
}


def _now(resource: Resource, reading: Reading) -> str:
    name = _NAMES[resource]
    if reading.where:
        name = _NAMES_WITH_PLACE.get(resource, name).format(where=reading.where)
    return f"{name} {_amount(resource, reading, reading.value)}"


def _mark(resource: Resource, reading: Reading, fraction: float) -> str:
    """`1.35 GB (90% of 1.5 GB)`, or `1.5 GB` where the mark is the limit."""
    limit = _amount(resource, reading, reading.limit)
    if fraction == 1:
        return limit
    return f"{_amount(resource, reading, reading.limit * fraction)} ({fraction:.0%} of {limit})"


def _amount(resource: Resource, reading: Reading, value: float) -> str:
    if resource is Resource.CPU:
        return f"{value:.1%}".replace(".0%", "%")
    if resource is Resource.PROCESSES or reading.unit:
        return f"{value:.0f} {reading.unit}".rstrip()
    # Three decimals for GB: reading and limit must not look equal when they are megabytes apart.
    return f"{value / 1e6:.0f} MB" if value < 1e9 else f"{value / 1e9:.3f}".rstrip("0").rstrip(".") + " GB"
