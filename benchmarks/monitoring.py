"""What it costs to tell of everything: no-op tasks and a wide workflow, `events` off, full, full and listened to.

    python -m benchmarks.monitoring [--tasks N] [--width N] [--rounds R]

The three in turn, each round beginning with another. The last has a worker that sends Celery's own events (`-E`), and
`celery events --dump` that receives all. AgentLink may use all of the CPU (`cpu=100%`), and so may whoever listens.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import psutil
import redis

from benchmarks import broker as tasks_benchmark
from benchmarks import workflows as workflows_benchmark
from benchmarks.broker import REPOSITORY, SIDES, running_broker

OURS = SIDES[1]
WAYS = ("off", "full", "listened to")
TARGET = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=6000, help="tasks a round (default: %(default)s)")
    parser.add_argument(
        "--width", type=int, default=3000, help="members of the workflow's chord (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: %(default)s)")
    options = parser.parse_args()
    tasks: dict[str, list[float]] = {way: [] for way in WAYS}
    steps: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="agentlink-") as home, running_broker(Path(home)) as settings:
        client = redis.Redis(unix_socket_path=str(settings.socket_path))
        for number in range(options.rounds):
            for way in WAYS[number % 3 :] + WAYS[: number % 3]:
                tasks[way].append(drained(client, way, options.tasks))
                steps[way].append(options.width / run(client, way, options.width))
    show("no-op tasks a second", tasks)
    show("steps of a workflow a second", steps)


def drained(client: redis.Redis, way: str, tasks: int) -> float:
    """Tasks a second, of those that are queued before."""
    client.flushdb()
    for _ in range(tasks // 1000):
        tasks_benchmark.client(OURS, "grouped", 1)
    tasks_benchmark.wait_for_expiry(client, OURS)
    with watched(way), running_worker(way) as worker:
        return tasks_benchmark.drain(client, worker, tasks)["drain"]


def run(client: redis.Redis, way: str, width: int) -> float:
    """Seconds from the call of a workflow to its result."""
    client.flushdb()
    with watched(way), running_worker(way):
        return workflows_benchmark.client(OURS, "run", width, 1)[0]


@contextmanager
def running_worker(way: str) -> Iterator[psutil.Process]:
    os.environ["AGENTLINK_EVENTS"] = "off" if way == "off" else "full"
    options = ("-E",) if way == "listened to" else ()
    with tasks_benchmark.running_worker(OURS, *options, wait=False) as worker:
        yield worker


def watched(way: str) -> AbstractContextManager[None]:
    return listening() if way == "listened to" else nullcontext()


@contextmanager
def listening() -> Iterator[None]:
    command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "tasks", "events", "--dump"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def show(what: str, measured: dict[str, list[float]]) -> None:
    off = statistics.median(measured["off"])
    for way, values in measured.items():
        middle = statistics.median(values)
        verdict = (
            ""
            if way == "off"
            else f", {middle / off:.3f} of off, at least {TARGET} " + ("met" if middle >= TARGET * off else "MISSED")
        )
        print(f"{what:30} {way:12} {middle:,.0f} ({min(values):,.0f} to {max(values):,.0f}){verdict}")


if __name__ == "__main__":
    main()
