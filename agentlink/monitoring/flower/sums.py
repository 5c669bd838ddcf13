"""What a run's steps take together, for a table of runs.

Each run's steps are read, so those of a large run are read seldom: the larger, the older its sums may be.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

import redis

from workflows import store
from workflows.states import TERMINAL_RUN_STATES, StepState
from workflows.store import RunRecord

_KNOWN_MAX = 2_000
# 2,000 steps are read in 30 ms or so.
_STEPS_A_SECOND = 2_000
_ENDED_MAX_STEPS = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """Of a run's steps: how many run, the most memory that one has taken, the CPU time of all that have ended."""

    running: int = 0
    peak_bytes: int | None = None
    cpu_s: float = 0.0


_known: OrderedDict[tuple[str, str, int], tuple[Sums, float]] = OrderedDict()
_lock = threading.Lock()


def sums_of(client: redis.Redis, run: RunRecord) -> Sums:
    """The sums of a run."""
    ended = run.state in TERMINAL_RUN_STATES
    if run.steps_total == 0 or (ended and run.steps_total > _ENDED_MAX_STEPS):
        return Sums()
    # An ended run's steps change no more, but it may be resumed.
    key = (run.id, run.state, run.steps_done if ended else 0)
    with _lock:
        sums, good_until = _known.get(key, (None, 0.0))
    if sums is not None and (ended or time.monotonic() < good_until):
        return sums
    sums = _sums(store.read_steps(client, run.id))
    with _lock:
        _known[key] = (sums, time.monotonic() + run.steps_total / _STEPS_A_SECOND)
        while len(_known) > _KNOWN_MAX:
            _known.popitem(last=False)
    return sums


def _sums(steps: list[store.StepRecord]) -> Sums:
    return Sums(
        running=sum(step.state is StepState.RUNNING for step in steps),
        peak_bytes=max((step.peak_bytes for step in steps if step.peak_bytes is not None), default=None),
        cpu_s=sum(step.cpu_s or 0.0 for step in steps),
    )
