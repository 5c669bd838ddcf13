"""What is reserved for a task before it starts, and the most it may take while it runs: declared, learned or guessed.

Pure rules over what a message says, what its task declares and what earlier runs have taught.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from resource_guard.profiles import Profile

#: The message header with what one call declares in place of its task: memory in bytes, CPU cores; null: as the task.
DECLARED_HEADER = "agentlink_declared"
#: A declared size is a promise: so much more than it is the cap, for what is never quite the same twice.
DECLARED_CAP_FACTOR = 1.1
#: A learned one is none: a task gets twice what it took so far before it is stopped and tried with more.
LEARNED_CAP_FACTOR = 2.0
#: And this on top: mapped memory is counted, and a process maps some for itself (a thread's stack is 8 MB).
CAP_MARGIN_BYTES = 32_000_000
#: From so many measured runs on, what was learned bounds the next one.
TRUSTED_RUNS = 5
#: Of what there is for tasks, the part reserved for one that nobody has ever measured.
UNKNOWN_SHARE = 1 / 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Reservation:
    """What a task is to have: `memory_bytes` beyond an idle process, `cpu_cores` it keeps busy."""

    memory_bytes: int
    cpu_cores: float
    #: Whether its author has said what it takes; taking more is then an error.
    declared: bool
    #: How many runs it was learned from; 0 when it was not.
    runs: int = 0
    #: How often the task was evicted, or stopped for taking more than it might, before.
    evictions: int = 0

    @property
    def trusted(self) -> bool:
        """Whether the task is expected to keep to it."""
        return self.declared or (self.runs >= TRUSTED_RUNS and not self.evictions)


@dataclass(frozen=True, kw_only=True, slots=True)
class Allowance:
    """The most a task may take. Should it want more, it is tried with so much reserved; None: that is its failure."""

    cap_bytes: int
    next_bytes: int | None


def declared(task: Any, of_call: Sequence[Any] | None) -> tuple[int | None, float | None]:
    """Memory in bytes and CPU cores that a call takes at most; None where neither it (`DECLARED_HEADER`) nor its task
    says.
    """
    memory_bytes, cores = of_call or (None, None)
    return (
        getattr(task, "memory_bytes", None) if memory_bytes is None else memory_bytes,
        getattr(task, "cpu_cores", None) if cores is None else cores,
    )


def reserve(
    *,
    declared_bytes: int | None,
    declared_cores: float | None,
    known: Profile | None,
    evictions: int,
    after_eviction_bytes: int,
    capacity_bytes: int,
) -> Reservation:
    """What to set aside. What is not declared never exceeds `capacity_bytes`, all there is for tasks: it runs alone."""
    cores = declared_cores if declared_cores is not None else known.cpu_cores if known else 0.0
    if declared_bytes is not None:
        return Reservation(memory_bytes=declared_bytes, cpu_cores=cores, declared=True, evictions=evictions)
    expected_bytes = known.memory_bytes if known else int(capacity_bytes * UNKNOWN_SHARE)
    return Reservation(
        memory_bytes=min(max(expected_bytes, after_eviction_bytes), capacity_bytes),
        cpu_cores=cores,
        declared=False,
        runs=known.runs if known else 0,
        evictions=evictions,
    )


def allow(reserved: Reservation, *, free_bytes: int, capacity_bytes: int) -> Allowance:
    """The cap of a task that starts, with `free_bytes` reserved for nobody else then.

    One that is not known well gets all of those: it fails for want of memory only where there is none.
    """
    if reserved.declared:
        cap_bytes = int(reserved.memory_bytes * DECLARED_CAP_FACTOR) + CAP_MARGIN_BYTES
        return Allowance(cap_bytes=cap_bytes, next_bytes=None)
    if reserved.trusted:
        cap_bytes = int(reserved.memory_bytes * LEARNED_CAP_FACTOR) + CAP_MARGIN_BYTES
    else:
        cap_bytes = max(free_bytes, reserved.memory_bytes)
    cap_bytes = min(cap_bytes, capacity_bytes)
    next_bytes = more_than(reserved, cap_bytes, capacity_bytes) if cap_bytes < capacity_bytes else None
    return Allowance(cap_bytes=cap_bytes, next_bytes=next_bytes)


def more_than(reserved: Reservation, used_bytes: int, capacity_bytes: int) -> int:
    """What to reserve for a task that took more than it might and is tried again: twice as much, the next time all."""
    if reserved.evictions:
        return capacity_bytes
    return min(capacity_bytes, 2 * max(used_bytes, reserved.memory_bytes))
