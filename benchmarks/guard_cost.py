"""What the resource guard's looking and deciding cost, ten times a second over a worker with eight forked children.

    python -m benchmarks.guard_cost [--json FILE] [--seconds S]

Each child has 60 MB from its parent, half of which it has written to, and 30 MB more; in every tenth of a second it
works for 10 ms. The limit is set so that memory is far below it, near the pause, over it, over the hard mark. CPU time
is that of the whole observing process, with the thread that reads disks.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from resource_guard.caps import NICE
from resource_guard.limits import DEFAULT_MARKS, Limits
from resource_guard.observation import Resource
from resource_guard.policy import State, decide
from resource_guard.sensors import Sensors

CHILDREN = 8
SHARED_BYTES = 60_000_000
OWN_BYTES = 30_000_000
WORK_S = 0.01
INTERVAL_S = 0.1
SECONDS = 10.0
#: The first looks open all files and find out what is shared.
SETTLE_LOOKS = 30
#: Of one core, in percent, except while running work is being ended: then a wrong reading would be dearer.
TARGET_PERCENT = 1.0

MARKS = DEFAULT_MARKS[Resource.MEMORY]
#: What share of its limit memory is at, and whether the target holds there.
SITUATIONS = {
    "far below the limit": (0.10, True),
    "near the pause": ((MARKS.resume + (MARKS.pause or 1)) / 2, True),
    "paused": (((MARKS.pause or 1) + MARKS.hard) / 2, False),
    "over the hard mark": (1.10, False),
}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write every measurement there")
    parser.add_argument("--seconds", metavar="S", type=float, default=SECONDS, help=f"for each row (default {SECONDS})")
    arguments = parser.parse_args()
    with running_children():
        measured = measure(arguments.seconds)
    show(measured)
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n")


@contextmanager
def running_children() -> Iterator[None]:
    context = multiprocessing.get_context("fork")
    shared = bytearray(os.urandom(1_000_000)) * (SHARED_BYTES // 1_000_000)
    ready, tell = context.Pipe(duplex=False)
    children = [context.Process(target=work, args=(shared, tell), daemon=True) for _ in range(CHILDREN)]
    for child in children:
        child.start()
    for _ in children:
        ready.recv()
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.join()


def work(shared: bytearray, tell: Connection) -> None:
    """Until killed."""
    os.nice(NICE)
    own = bytearray(b"x") * OWN_BYTES
    written_bytes = SHARED_BYTES // 2
    shared[:written_bytes] = bytes(written_bytes)
    tell.send(len(own))
    at = 0
    while True:
        until = time.process_time() + WORK_S
        while time.process_time() < until:
            shared[at % written_bytes] = at % 256
            at += 512
        time.sleep(INTERVAL_S - WORK_S)


def measure(seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="agentlink-") as home:
        used_bytes = look_for(seconds / 2, 8_000_000_000, Path(home))["used_bytes"]
        return {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
            "python": platform.python_version(),
            "used_bytes": used_bytes,
            "situations": {
                name: look_for(seconds, int(used_bytes / fraction), Path(home))
                for name, (fraction, _) in SITUATIONS.items()
            },
        }


def look_for(seconds: float, memory_bytes: int, home: Path) -> dict[str, Any]:
    """CPU time of all looks and how long each took."""
    limits = Limits(memory_bytes=memory_bytes, memory_free_bytes=500_000_000)
    pid = os.getpid()
    sensors = Sensors(lambda: limits, [pid], pid, [home, Path(tempfile.gettempdir())], lambda: (1, 2), home)
    state, looks_s = State(), []
    for _ in range(SETTLE_LOOKS):
        sensors.observe(time.monotonic())
        time.sleep(INTERVAL_S)
    began_s, cpu_s = time.monotonic(), time.process_time()
    while (now := time.monotonic()) < began_s + seconds:
        seen = sensors.observe(now)
        state, decision = decide(limits, state, seen)
        looks_s.append(time.monotonic() - now)
        time.sleep(max(0.0, INTERVAL_S - looks_s[-1]))
    used_s, took_s = time.process_time() - cpu_s, time.monotonic() - began_s
    sensors.close()
    return {
        "level": decision.levels[Resource.MEMORY].name,
        "used_bytes": seen.readings[Resource.MEMORY].value,
        "cpu_percent": 100 * used_s / took_s,
        "looks_s": looks_s,
    }


def show(measured: dict[str, Any]) -> None:
    print(f"{measured['machine']}; Python {measured['python']}")
    print(f"{CHILDREN} forked children, {measured['used_bytes'] / 1e6:.0f} MB in all, a look every {INTERVAL_S} s")
    print(f"  {'memory is':22}{'level':8}{'a look, median':>15}{'99 %':>10}{'of one core':>13}  target")
    for name, row in measured["situations"].items():
        looks_ms = [look_s * 1e3 for look_s in row["looks_s"]]
        high_ms = statistics.quantiles(looks_ms, n=100)[98]
        met = "met" if row["cpu_percent"] <= TARGET_PERCENT else "MISSED"
        target = f"≤ {TARGET_PERCENT:g} %: {met}" if SITUATIONS[name][1] else ""
        print(
            f"  {name:22}{row['level']:8}{statistics.median(looks_ms):12.2f} ms{high_ms:7.2f} ms"
            f"{row['cpu_percent']:11.2f} %  {target}".rstrip()
        )


if __name__ == "__main__":
    main()
