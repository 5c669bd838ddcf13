"""Readings over the last month: what there are, and how they are read.

Of the last hour there is one value a second, of the last day one in ten seconds, of the last 30 days one in five
minutes. A coarser value is made of the finer ones as its series asks for: of memory the most, of what is left the
least, of counts the sum. So a peak of a second is still seen after a month.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import redis

from agentlink.monitoring import rings
from agentlink.monitoring.rings import RINGS, Ring

# -- Of all workers together. Where several share a machine, what both see is counted once.
MEMORY_BYTES = "memory_bytes"
MEMORY_LIMIT_BYTES = "memory_limit_bytes"
#: What the machine, or its container, has left; and how much that must be.
MEMORY_FREE_BYTES = "memory_free_bytes"
MEMORY_FREE_LIMIT_BYTES = "memory_free_limit_bytes"
#: Share of the CPU time that there is, mean over 10 s; and how much that may be.
CPU_FRACTION = "cpu_fraction"
CPU_LIMIT_FRACTION = "cpu_limit_fraction"
#: What the fullest disk has left; and how much that must be.
DISK_FREE_BYTES = "disk_free_bytes"
DISK_FREE_LIMIT_BYTES = "disk_free_limit_bytes"
#: What everything under `home` takes, and may take.
DISK_QUOTA_BYTES = "disk_quota_bytes"
DISK_QUOTA_LIMIT_BYTES = "disk_quota_limit_bytes"
#: The limit is absent where the broker has none.
BROKER_MEMORY_BYTES = "broker_memory_bytes"
BROKER_MEMORY_LIMIT_BYTES = "broker_memory_limit_bytes"
PROCESSES = "processes"
PROCESSES_LIMIT = "processes_limit"
#: How many workers tell how they are; the share of them that takes no tasks.
WORKERS = "workers"
PAUSED_FRACTION = "paused_fraction"
#: Tasks that run; that workers have taken and hold until there is room; messages taken and not yet done with.
TASKS_RUNNING = "tasks_running"
TASKS_WAITING = "tasks_waiting"
IN_FLIGHT = "in_flight"
RESERVED_BYTES = "reserved_bytes"
RUNS_QUEUED = "runs_queued"
RUNS_RUNNING = "runs_running"
DEAD_LETTERS = "dead_letters"
#: How long ago the last event was written that has not been sent on.
EVENT_LAG_S = "event_lag_s"

# -- Counted: in each row, how many there were since the one before.
TASKS_DONE = "tasks_done"
TASKS_FAILED = "tasks_failed"
TASKS_RETRIED = "tasks_retried"
EVICTIONS = "evictions"
PAUSES = "pauses"
#: Seconds in which a worker took no tasks; of several workers, the sum.
PAUSED_S = "paused_s"

# -- Of each queue: `queue_depth("cpu")`.
_DEPTH, _AGE = "queue_depth:", "queue_age_s:"

_COUNTED = {TASKS_DONE, TASKS_FAILED, TASKS_RETRIED, EVICTIONS, PAUSES, PAUSED_S}
_LEAST = {MEMORY_FREE_BYTES, DISK_FREE_BYTES, WORKERS}
_MEAN = {CPU_FRACTION, PAUSED_FRACTION, TASKS_RUNNING, TASKS_WAITING, IN_FLIGHT}


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A value each `step_s` seconds, None where there is none. All that are read together have the same times."""

    #: Seconds since 1970.
    times: Sequence[int]
    values: Sequence[float | None]
    step_s: int


def queue_depth(queue: str) -> str:
    """The series of how many messages wait in a queue, those that wait for their time or a place apart."""
    return _DEPTH + queue


def queue_age(queue: str) -> str:
    """The series of how long the oldest message of a queue has waited, in seconds."""
    return _AGE + queue


def names(client: redis.Redis) -> list[str]:
    """The series there are."""
    return rings.columns(client)


def queues(client: redis.Redis) -> list[str]:
    """The queues of which there are series."""
    return queues_among(names(client))


def queues_among(names: Iterable[str]) -> list[str]:
    """The queues of which there are series among these."""
    return [name.removeprefix(_DEPTH) for name in names if name.startswith(_DEPTH)]


def read(client: redis.Redis, names: Iterable[str], since: float, until: float | None = None) -> dict[str, Series]:
    """Series by their names, from one time to another (seconds since 1970; None: now), as fine as there are so old.

    A series of which nothing is known has no values but None.
    """
    now_s = int(client.time()[0])
    until_s = now_s if until is None else min(int(until), now_s)
    ring = ring_for(now_s - since)
    since_s = -ring.step_s * (-max(int(since), now_s - ring.span_s) // ring.step_s)
    times = range(since_s, until_s + 1, ring.step_s)
    columns = {name: number for number, name in enumerate(rings.columns(client))}
    wanted = {name: columns.get(name, math.inf) for name in names}
    values: dict[str, list[float | None]] = {name: [None] * len(times) for name in wanted}
    for at_s, row in rings.rows(client, ring, since_s, until_s + 1):
        place = (at_s - since_s) // ring.step_s
        for name, column in wanted.items():
            if column < len(row):
                value = row[int(column)]
                values[name][place] = None if math.isnan(value) else value
    return {name: Series(times=times, values=values[name], step_s=ring.step_s) for name in wanted}


def ring_for(age_s: float) -> Ring:
    """The finest ring that goes back so far."""
    return next((ring for ring in RINGS if age_s <= ring.span_s), RINGS[-1])


def together(name: str) -> Callable[[Sequence[float]], float]:
    """How values of a series are made one of a coarser ring."""
    if name in _COUNTED:
        return math.fsum
    if name in _LEAST:
        return min
    return fmean if name in _MEAN else max
