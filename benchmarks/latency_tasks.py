"""In the worker of `benchmarks.guard_latency`: a probe in its guard, and a task that crosses the guard's soft limit.

The probe writes a line for each look, each pause and each resumption to the file `PROBE_PATH`, with the time of
`time.monotonic()`, which is the same in all processes.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resource_guard.guard import Guard
from resource_guard.observation import Resource
from resource_guard.valve import Valve
from tasks import task

PROBE_PATH = os.environ.get("PROBE_PATH", "")
LIMITS = {"memory": "1500MB", "memory_soft": "60%", "memory_resume": "50%"}
SOFT_BYTES = 900_000_000
#: From so much below the soft limit to as much above: large against what else changes, small against what a core can
#: write in a look's time.
STEP_BYTES = 60_000_000
#: So many tasks hold so much each all the while; and the most that the one that crosses the limit may have.
HOLDERS, HELD_BYTES, MOST_BYTES = 3, 160_000_000, 400_000_000
WITHIN_S = 10.0
_CHUNK = b"x" * 4_000_000


@task
def noop() -> None:
    """Something for the worker to do."""


@task(memory="140MB")
def hold(until: str) -> None:
    """Hold memory until there is such a file: no task alone may take so much that the limit is reached."""
    held = bytearray(b"x") * HELD_BYTES
    while not Path(until).exists():
        time.sleep(0.1)
    del held


@task(memory="340MB")
def cross(times: int) -> list[list[float]]:
    """Cross the limit so often, up and down again; for each time when it was crossed, when all that was to be taken had
    been, when the guard paused, when it was down again, and when the guard resumed.
    """
    probe, crossings = Probe(), []
    with mmap.mmap(-1, MOST_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        held = Held(memory)
        for _ in range(times):
            while (missing_bytes := int(SOFT_BYTES - probe.wait_for_looks(3))) > 1.25 * STEP_BYTES:
                held.grow(missing_bytes - STEP_BYTES)
            crossed_at = held.grow(missing_bytes)
            up_at = held.grow(STEP_BYTES)
            paused_at = probe.wait_for("pause")
            held.give_back()
            down_at = time.monotonic()
            crossings.append([crossed_at, up_at, paused_at, down_at, probe.wait_for("resume")])
    return crossings


class Held:
    """Memory that is written from its beginning on, until all of it is given back."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._bytes = 0

    def grow(self, size_bytes: int) -> float:
        """Take so much more; the time when that is done."""
        end = self._bytes + size_bytes
        while self._bytes < end:
            part = _CHUNK[: end - self._bytes]
            self._memory[self._bytes : self._bytes + len(part)] = part
            self._bytes += len(part)
        return time.monotonic()

    def give_back(self) -> None:
        self._memory.madvise(mmap.MADV_DONTNEED)
        self._bytes = 0


class Probe:
    """Reads what the probe in the guard writes from now on."""

    def __init__(self) -> None:
        self._file = Path(PROBE_PATH).open()  # noqa: SIM115 - as long as its process
        self._file.seek(0, os.SEEK_END)

    def wait_for_looks(self, count: int) -> float:
        """Wait for so many looks from now on; the memory that the last one saw."""
        self._file.seek(0, os.SEEK_END)
        for _ in range(count):
            words = self._next("look")
        return float(words[3])

    def wait_for(self, what: str) -> float:
        """Wait for the first `what` after all that has been read; its time."""
        return float(self._next(what)[1])

    def _next(self, what: str) -> list[str]:
        deadline = time.monotonic() + WITHIN_S
        while time.monotonic() < deadline:
            words = self._file.readline().split()
            if words and words[0] == what:
                return words
            if not words:
                time.sleep(0.002)
        raise TimeoutError(f"no {what} within {WITHIN_S:g} s")


def put_in() -> None:
    """Have the guard of this process write down what it does."""
    fd = os.open(PROBE_PATH, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(what: str, *numbers: float) -> None:
        os.write(fd, " ".join([what, f"{time.monotonic():.6f}", *map(str, numbers)]).encode() + b"\n")

    def after(function: Callable[..., Any], do: Callable[[Any, Any], None]) -> Callable[..., Any]:
        def wrapped(self: Any, *args: Any) -> Any:
            result = function(self, *args)
            do(self, result)
            return result

        return wrapped

    def looked(guard: Guard, _: None) -> None:
        reading = guard.last_observation and guard.last_observation.readings.get(Resource.MEMORY)
        write("look", guard.late_s, reading.value if reading else 0)

    Guard.tick = after(Guard.tick, looked)  # type: ignore[method-assign]
    for name in ("pause", "resume"):
        turned = after(getattr(Valve, name), lambda _, turned, name=name: write(name) if turned else None)
        setattr(Valve, name, turned)


if PROBE_PATH:
    put_in()
