"""The tasks of `benchmarks.guard_packing`: twelve kinds, ten of each, with known memory and time."""

from __future__ import annotations

import math
import mmap
import random
import time
from collections.abc import Callable

LIMIT_BYTES = 1_500_000_000
#: What a task of each kind takes, in MB, evenly spread on a logarithmic scale, and for how long, in seconds: neither
#: follows the other.
KINDS = (
    (50, 1.4), (64, 0.4), (81, 1.8), (102, 0.9), (130, 0.2), (165, 1.6),
    (210, 0.7), (266, 2.0), (338, 0.5), (430, 1.1), (546, 1.3), (700, 0.8),
)  # fmt: skip
OF_EACH_KIND = 10
_CHUNK = b"x" * 16_000_000


def hold(memory_mb: int, duration_s: float) -> int:
    """Take memory and sleep until the time is over that this is to take: how busy the CPU is makes no difference."""
    ends_at = time.monotonic() + duration_s
    size_bytes = memory_mb * 1_000_000
    with mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.madvise(mmap.MADV_HUGEPAGE)
        for start in range(0, size_bytes, len(_CHUNK)):
            held[start : start + len(_CHUNK)] = _CHUNK[: size_bytes - start]
        time.sleep(max(0.0, ends_at - time.monotonic()))
        return held[size_bytes - 1]


def holder(memory_mb: int, duration_s: float) -> Callable[[], int]:
    """A function for Celery to make a task of."""

    def hold_this() -> int:
        return hold(memory_mb, duration_s)

    return hold_this


#: The order in which as much as possible comes together.
WORST = -1


def order(seed: int) -> list[int]:
    """The kinds of all tasks, in the order in which they are called."""
    kinds = [kind for kind in reversed(range(len(KINDS))) for _ in range(OF_EACH_KIND)]
    if seed != WORST:
        random.Random(seed).shuffle(kinds)
    return kinds


def bound_s(slots: int) -> float:
    """No order is faster than this: memory, slots and the longest task each allow no less."""
    held_byte_s = OF_EACH_KIND * sum(memory_mb * 1e6 * duration_s for memory_mb, duration_s in KINDS)
    busy_s = OF_EACH_KIND * math.fsum(duration_s for _, duration_s in KINDS)
    return max(held_byte_s / LIMIT_BYTES, busy_s / slots, max(duration_s for _, duration_s in KINDS))
