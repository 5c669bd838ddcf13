"""Memory that is to be had without ending anybody's work: looked for before a task is evicted."""

from __future__ import annotations

import gc
from collections.abc import Mapping

import psutil

from resource_guard.caps import malloc_trim

#: An idle process is worth replacing when it holds so much more than a new one, and half as much again.
FAT_BYTES = 64_000_000
FAT_FACTOR = 1.5


def give_back_own() -> int:
    """Return to the machine what this process has freed but still holds; how many bytes that were.

    Takes some milliseconds for each 10 MB of Python objects, during which no other thread runs.
    """
    process = psutil.Process()
    before_bytes = process.memory_info().rss
    gc.collect()
    if (trim := malloc_trim()) is not None:
        trim(0)
    return max(0, before_bytes - process.memory_info().rss)


def fat(idle_bytes: Mapping[int, int], fresh_bytes: int) -> list[int]:
    """Of idle processes, by pid, those that hold much more than a new one (`fresh_bytes`), the fattest first."""
    enough_bytes = max(fresh_bytes + FAT_BYTES, int(fresh_bytes * FAT_FACTOR))
    return sorted((pid for pid, held in idle_bytes.items() if held > enough_bytes), key=lambda pid: -idle_bytes[pid])
