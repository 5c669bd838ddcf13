"""How soon the guard acts: a task crosses the soft limit of memory again and again, on a quiet machine and a busy one.

    python -m benchmarks.guard_latency [--json FILE] [--crossings N]

Busy: two processes a core that do nothing but compute, at the priority of the worker itself, and a stream of no-ops
through the worker. The task crosses the limit half-way through taking 120 MB in one go: where that is follows from what
the guard has read before, which is right to 1 % of the limit. The time to resume is what goes by from when memory is
down again and the least time paused is over. A look is late by what the guard measures itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.integration.system import System

# Settings are read when the first module of a Celery app is imported: that must wait until `main` has made a home.

CROSSINGS = 100
REST_S = 1.0
#: What is to be reached.
PAUSE_S, RESUME_S, LATE_S = 0.2, 1.0, 0.05
BURNERS_PER_CORE = 2


def main() -> None:
    """Measure, and print percentiles and targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write every measurement there")
    parser.add_argument("--crossings", metavar="N", type=int, default=CROSSINGS, help=f"default {CROSSINGS}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentlink-") as name:
        home = Path(name)
        (home / "none.toml").touch()
        os.environ |= {
            "AGENTLINK_HOME": name,
            "AGENTLINK_CONFIG": f"{name}/none.toml",
            "AGENTLINK_IMPORTS": "benchmarks.latency_tasks",
            "AGENTLINK_GUARD_REST": f"{REST_S:g}s",
        }
        measured = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
            "versions": {"python": platform.python_version(), "celery": version("celery")},
            "quiet": measure(home, arguments.crossings, busy=False),
            "busy": measure(home, arguments.crossings, busy=True),
        }
    show(measured)
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n")


def measure(home: Path, crossings: int, *, busy: bool) -> dict[str, Any]:
    """What a worker of its own does."""
    from benchmarks.latency_tasks import HOLDERS, WITHIN_S, cross, hold

    probe_path = home / f"probe-{busy}"
    with running_system(home, probe_path), contextlib.ExitStack() as load:
        if busy:
            load.enter_context(burning())
            load.enter_context(calling())
        held = [hold.delay(str(probe_path.with_suffix(".done"))) for _ in range(HOLDERS)]
        times = cross.delay(crossings).get(timeout=60 + crossings * WITHIN_S)
        probe_path.with_suffix(".done").touch()
        for result in held:
            result.get(timeout=60)
    looks = [line.split() for line in probe_path.read_text().splitlines() if line.startswith("look")]
    return {
        "pause_s": [paused_at - crossed_at for crossed_at, _, paused_at, _, _ in times],
        "pause_after_all_s": [paused_at - up_at for _, up_at, paused_at, _, _ in times],
        "resume_s": [resumed_at - max(down_at, paused_at + REST_S) for _, _, paused_at, down_at, resumed_at in times],
        "late_s": [float(words[2]) for words in looks],
    }


@contextmanager
def running_system(home: Path, probe_path: Path) -> Iterator[System]:
    """The embedded broker, and a prefork worker with a probe in its guard."""
    from agentlink.broker import server
    from agentlink.settings import load
    from benchmarks.latency_tasks import HOLDERS, LIMITS
    from tests.integration.system import System

    server.ensure_running(load())
    system = System(load(), home)
    try:
        os.environ["PROBE_PATH"] = str(probe_path)
        system.start_worker(concurrency=HOLDERS + 2, **LIMITS)
        yield system
    finally:
        del os.environ["PROBE_PATH"]
        for worker in system.workers:
            worker.stop()
        server.stop(load())


@contextmanager
def burning() -> Iterator[None]:
    """Processes that compute, twice as many as there are cores."""
    burners = [
        multiprocessing.Process(target=burn, daemon=True) for _ in range(BURNERS_PER_CORE * (os.cpu_count() or 1))
    ]
    for burner in burners:
        burner.start()
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.join()


def burn() -> None:
    while True:
        sum(range(100_000))


@contextmanager
def calling() -> Iterator[None]:
    """No-ops, as long as few enough are waiting."""
    from agentlink.broker import server
    from agentlink.settings import load
    from benchmarks.latency_tasks import noop

    stopping = threading.Event()
    client = server.connect(load())

    def call() -> None:
        while not stopping.wait(0.005):
            if client.llen("cpu") < 100:
                noop.apply_async(ignore_result=True)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def show(measured: dict[str, Any]) -> None:
    print(measured["machine"])
    print(", ".join(f"{name} {number}" for name, number in measured["versions"].items()))
    for name in ("quiet", "busy"):
        figures = measured[name]
        print(f"{name}: {len(figures['resume_s'])} crossings, {len(figures['late_s'])} looks")
        for words, key, target_s, share in (
            ("paused, from crossing on", "pause_s", PAUSE_S, 0.99),
            ("paused, from 60 MB above on", "pause_after_all_s", None, 0.99),
            (f"resumed, beyond {REST_S:g} s paused", "resume_s", RESUME_S, 1.0),
            ("looks late by", "late_s", LATE_S, 0.99),
        ):
            values = sorted(figures[key])
            reached = values[min(int(share * len(values)), len(values) - 1)]
            met = "met" if target_s is None or reached <= target_s else "MISSED"
            target = "" if target_s is None else f", target {target_s * 1e3:.0f} ms {met}"
            median_ms, reached_ms, all_ms = (1e3 * s for s in (statistics.median(values), reached, values[-1]))
            print(
                f"  {words:34}median {median_ms:5.0f} ms, {share:4.0%} within {reached_ms:5.0f} ms{target}, "
                f"all within {all_ms:.0f} ms"
            )


if __name__ == "__main__":
    main()
