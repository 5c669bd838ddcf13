"""Caps and measures of one task, each in a process of its own."""

from __future__ import annotations

import marshal
import os
import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resource_guard import caps

MB = 1_000_000

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")


def in_new_process(function: Callable[[], Any]) -> Any:
    """What a function, which has no variables of another's, returns in a new process.

    One that is forked from the tests' has memory which other tests have freed, and takes that before it asks for more.
    One that `multiprocessing` spawns leaves a process that tracks resources behind, for as long as the tests' runs.
    """
    assert function.__closure__ is None
    code = marshal.dumps(function.__code__)
    python = [sys.executable, "-c", f"from {__name__} import _run; _run()"]
    return pickle.loads(subprocess.run(python, input=code, stdout=subprocess.PIPE, check=True).stdout)


def _run() -> None:
    code = marshal.load(sys.stdin.buffer)
    pickle.dump(types.FunctionType(code, globals())(), sys.stdout.buffer)


def _allocate_under(cap_mb: int, size_mb: int) -> str:
    try:
        with caps.capped(cap_mb * MB):
            bytearray(size_mb * MB)
    except MemoryError:
        return f"MemoryError, and then {len(bytearray(size_mb * MB)) // MB} MB"
    return "had it"


def test_an_allocation_beyond_the_cap_fails_and_the_process_lives_on_without_it() -> None:
    assert in_new_process(lambda: _allocate_under(100, 200)) == "MemoryError, and then 200 MB"


def test_a_task_that_fails_under_its_cap_had_what_it_took_and_not_what_is_left_of_it() -> None:
    """By the time its error is caught most of it is freed; what an earlier task took is none of its."""

    def fail() -> int:
        bytearray(b"x") * (500 * MB)
        with caps.capped(200 * MB) as cap:
            try:
                [bytearray(b"x") * (20 * MB) for _ in range(20)]
            except MemoryError:
                return cap.used_bytes() // MB
        return 0

    assert 150 < in_new_process(fail) <= 200


def test_an_allocation_within_the_cap_is_had() -> None:
    assert in_new_process(lambda: _allocate_under(300, 200)) == "had it"


def test_a_program_that_a_capped_task_starts_is_capped_too() -> None:
    def start() -> str:
        with caps.capped(100 * MB):
            code = (
                "try:\n  b = bytearray(4_000_000_000)\n  print('had it')\nexcept MemoryError:\n  print('MemoryError')"
            )
            return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert in_new_process(start) == "MemoryError\n"


def test_each_tasks_peak_is_its_own() -> None:
    """The second is not charged with the peak of the first, nor with what the process had before.

    Both take more than 32 MB: less may come from what the C library has kept of what was freed before.
    """

    def measure() -> list[int]:
        base = bytearray(b"x") * (80 * MB)
        peaks = []
        for size_mb in (200, 40):
            meter = caps.Meter()
            meter.start()
            held = bytearray(b"x") * (size_mb * MB)
            del held
            peaks.append(meter.stop().peak_bytes // MB)
        return [*peaks, len(base)]

    large, small, _ = in_new_process(measure)
    assert 195 <= large <= 230
    assert 35 <= small <= 70


def test_a_short_task_is_not_taken_for_one_that_keeps_several_cores_busy() -> None:
    def measure() -> float:
        most = 0.0
        for _ in range(200):
            meter = caps.Meter()
            meter.start()
            sum(range(50_000))
            used = meter.stop()
            most = max(most, used.cpu_s / used.wall_s)
        return most

    assert in_new_process(measure) < 1.5


def test_cpu_and_time_are_measured() -> None:
    def measure() -> caps.Used:
        meter = caps.Meter()
        meter.start()
        sum(range(3_000_000))
        return meter.stop()

    used = in_new_process(measure)
    assert 0 < used.cpu_s <= used.wall_s + 0.05


def test_memory_that_a_task_has_freed_goes_back_to_the_machine() -> None:
    """One small block that stays keeps the C library from giving back all that lies before it."""

    def fill_and_give_back() -> tuple[int, bool, int]:
        blocks = [bytes(1000) for _ in range(200_000)]
        kept = blocks.pop()
        blocks.clear()
        before_bytes = caps._memory()[0]
        held_bytes = caps.give_back()
        now_bytes = caps._memory()[0]
        return (before_bytes - now_bytes) // MB, 0 < held_bytes <= now_bytes, len(kept)

    freed_mb, tells_what_it_holds, _ = in_new_process(fill_and_give_back)
    assert freed_mb > 150
    assert tells_what_it_holds


def test_the_kernel_takes_it_before_others() -> None:
    def settled() -> tuple[int, int]:
        caps.settle_in()
        return int(Path("/proc/self/oom_score_adj").read_text()), os.nice(0)

    assert in_new_process(settled) == (caps.OOM_SCORE_ADJUST, os.nice(0) + caps.NICE)
