"""What tasks of one name have taken, and what is to be reserved for the next one. Plain data and pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from resource_guard.caps import Used

#: Of each name the last so many measures are kept: a task that has changed is known anew after as many runs.
KEPT = 64
#: The share of measured peaks that a reservation is to cover.
_QUANTILE = 0.95
# The first run in a process imports, and any may meet a busy machine: a name is not judged by its longest.
_MOSTLY = 0.9
# What a next run may take beyond that: peaks are never quite the same twice.
_MARGIN_FRACTION = 0.05
_MARGIN_BYTES = 2_000_000
# A run of some milliseconds is all work, whatever a longer one would wait for: it tells nothing of cores.
_TELLS_CORES_S = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """What is known of a task name: `memory_bytes` is to be reserved, the rest is for people."""

    name: str
    runs: int
    memory_bytes: int
    peak_bytes: int
    cpu_cores: float
    wall_s: float
    #: So long or shorter are nine of ten runs.
    mostly_s: float


def profile(name: str, measures: Sequence[Used]) -> Profile:
    """The profile of one or more measures: high quantile of the peaks with a margin, mostly medians of the rest."""
    peaks = sorted(used.peak_bytes for used in measures)
    high = peaks[math.ceil(_QUANTILE * len(peaks)) - 1]
    walls = sorted(used.wall_s for used in measures)
    cores = sorted(used.cpu_s / used.wall_s for used in measures if used.wall_s >= _TELLS_CORES_S)
    return Profile(
        name=name,
        runs=len(measures),
        memory_bytes=int(high * (1 + _MARGIN_FRACTION)) + _MARGIN_BYTES,
        peak_bytes=peaks[-1],
        cpu_cores=cores[len(cores) // 2] if cores else 0.0,
        wall_s=walls[len(walls) // 2],
        mostly_s=walls[math.ceil(_MOSTLY * len(walls)) - 1],
    )
