"""How long a workflow takes to start, and a chord of 10,000 steps from its call to its result, beside stock Celery's.

    python -m benchmarks.workflows [--json FILE] [--width N] [--rounds R]

The same server, the same worker options, in turn, see `benchmarks.broker`; AgentLink may use all of the CPU
(`cpu=100%`). A workflow's start is measured on an idle system, beside a bare PING by the same client.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import redis

from benchmarks.broker import SIDES, Side, running_broker, running_worker

REPOSITORY = Path(__file__).parents[1]
WIDTH, ROUNDS = 10_000, 3
CALLS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--width", type=int, default=WIDTH, help="the members of a chord (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of both sides (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentlink-") as home, running_broker(Path(home)) as settings:
        broker = redis.Redis(unix_socket_path=str(settings.socket_path), db=0)
        measured = starts(options.width) | compared(broker, options.width, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1))
    show(measured, options.width)


def starts(width: int) -> dict[str, list[float]]:
    """Seconds of calls of workflows of one step and of many, and of PINGs."""
    ours = SIDES[1]
    with running_worker(ours):
        return {
            "ping": client(ours, "ping", 1, 10 * CALLS),
            "delay of 1 step": client(ours, "delay", 1, CALLS),
            f"delay of {width} steps": client(ours, "delay", width, CALLS // 10),
        }


def compared(broker: redis.Redis, width: int, rounds: int) -> dict[str, list[float]]:
    """Seconds from the call of a chord to its result, on both sides in turn."""
    ways = {"stock chord": (SIDES[0], "chord"), "our chord": (SIDES[1], "chord"), "our workflow": (SIDES[1], "run")}
    measured: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, (side, way) in ways.items() if number % 2 == 0 else reversed(ways.items()):
            broker.flushall()
            with running_worker(side):
                measured[name] += client(side, way, width, 1)
    return measured


def client(side: Side, way: str, width: int, count: int) -> list[float]:
    """The seconds that calls took; see `benchmarks.workflow_client`."""
    module = side.module if side.name == "stock" else "benchmarks.workflow_tasks"
    command = [sys.executable, "-m", "benchmarks.workflow_client", module, way, str(width), str(count)]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    seconds: list[float] = json.loads(done.stdout)
    return seconds


def show(measured: dict[str, list[float]], width: int) -> None:
    print(f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}")
    for name, seconds in measured.items():
        middle, least, most = statistics.median(seconds), min(seconds), max(seconds)
        p99 = f", p99 {statistics.quantiles(seconds, n=100)[98] * 1e3:.2f}" if len(seconds) >= CALLS else ""
        unit = 1e3 if middle < 1 else 1
        shown = f"{middle * unit:.2f} ({least * unit:.2f} to {most * unit:.2f}){p99}"
        print(f"{name:24} {shown} {'ms' if unit > 1 else 's'}, {len(seconds)} times")
    stock, ours = (statistics.median(measured[name]) for name in ("stock chord", "our workflow"))
    verdict = "met" if ours <= stock / 2 else "MISSED"
    print(f"a chord of {width}: {ours / stock:.2f} of stock's time, at most 0.5 {verdict}")


if __name__ == "__main__":
    main()
