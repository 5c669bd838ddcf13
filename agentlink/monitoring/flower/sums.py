"""What a run's steps take together, for a table of runs.

Each run's steps are read, so those of a large run are read seldom: the larger, the older its sums may be.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import redis

from workflows import store
from workflows.states import TERMINAL_RUN_STATES, StepState
from workflows.store import RunRecord

_KNOWN_MAX = 2_000
# 2,000 steps are read in 30 ms or so.
_STEPS_A_SECOND = 2_000
# A picture waits for no more than one large run, or some small ones.
_STEPS_AT_ONCE = 2_000
_ENDED_MAX_STEPS = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """Of a run's steps: how many run, the most memory that one has taken, the CPU time of all that have ended."""

    running: int = 0
    peak_bytes: int | None = None
    cpu_s: float = 0.0


_known: OrderedDict[tuple[str, str, int], tuple[Sums, float]] = OrderedDict()
_lock = threading.Lock()


def sums_of(client: redis.Redis, runs: Sequence[RunRecord]) -> dict[str, Sums]:
    """The sums of runs, by their ids: as new as reading so many steps at once allows."""
    found, left = {}, _STEPS_AT_ONCE
    for run in runs:
        sums, is_good = _remembered(run)
        if not is_good and (left >= run.steps_total or left == _STEPS_AT_ONCE):
            left -= run.steps_total
            sums = _read(client, run)
        found[run.id] = sums
    return found


def _remembered(run: RunRecord) -> tuple[Sums, bool]:
    """What is known of a run, and whether that will do."""
    ended = run.state in TERMINAL_RUN_STATES
    if run.steps_total == 0 or (ended and run.steps_total > _ENDED_MAX_STEPS):
        return Sums(), True
    with _lock:
        sums, good_until = _known.get(_key(run), (Sums(), 0.0))
    return sums, good_until > 0 and (ended or time.monotonic() < good_until)


def _read(client: redis.Redis, run: RunRecord) -> Sums:
    sums = _sums(store.read_steps(client, run.id))
    with _lock:
        _known[_key(run)] = (sums, time.monotonic() + run.steps_total / _STEPS_A_SECOND)
        while len(_known) > _KNOWN_MAX:
            _known.popitem(last=False)
    return sums


def _key(run: RunRecord) -> tuple[str, str, int]:
    # An ended run's steps change no more, but it may be resumed, and end again.
    return run.id, run.state, run.steps_done if run.state in TERMINAL_RUN_STATES else 0


def _sums(steps: list[store.StepRecord]) -> Sums:
    return Sums(
        running=sum(step.state is StepState.RUNNING for step in steps),
        peak_bytes=max((step.peak_bytes for step in steps if step.peak_bytes is not None), default=None),
        cpu_s=sum(step.cpu_s or 0.0 for step in steps),
    )
