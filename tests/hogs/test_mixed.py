"""Two hundred tasks, half of them liars, under limits; watched from outside, 20 times a second.

    make hogs [SEED=7] [CONCURRENCY=4]

The dice have a seed, which a failure names: it fixes what is called, and in which order.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from celery.result import AsyncResult
from celery.states import READY_STATES

from tasks import app
from tests.chaos import ledger
from tests.hogs import invariants, leftovers, load
from tests.hogs.invariants import Outcome
from tests.hogs.load import Call
from tests.hogs.watch import Watch, watched
from tests.integration.system import REPOSITORY, System, Worker

SEED = int(os.environ.get("HOGS_SEED") or random.randrange(10_000))
CONCURRENCY = int(os.environ.get("HOGS_CONCURRENCY") or 2)
LIMITS = {"memory": "1500MB", "cpu": "60%"}
DONE_WITHIN_S = 300.0

pytestmark = [pytest.mark.hogs, pytest.mark.timeout(DONE_WITHIN_S + 120)]


def test_limits_hold_whatever_tasks_say_and_honest_ones_are_done(
    system: System, tmp_path: Path, small_disk: Path | None
) -> None:
    calls = load.mixed(random.Random(SEED), tmp_path, small_disk)
    before = leftovers.there()
    worker = system.start_worker(concurrency=CONCURRENCY, imports="tests.hogs.work", **LIMITS)
    path = tmp_path / "ledger"
    path.touch()
    began_at = time.monotonic()
    with running_flower(system) as flower, watching(system, worker, flower, tmp_path) as watch:
        broker_pid = system.broker_pid()
        ids = [call.task.delay(str(path), number, *call.arguments).id for number, call in enumerate(calls)]
        unfinished = wait_for_all(system, worker, ids)
        ended = [
            name for name, process in (("worker", worker.process), ("Flower", flower)) if process.poll() is not None
        ]
    lasted_s = time.monotonic() - began_at
    outcomes = read(calls, ids, path)
    print(summary(outcomes, watch, lasted_s))
    problems = [
        *(f"{calls[number].name} (task {number}, {ids[number]}) is not done" for number in unfinished),
        *(f"the {name} has ended" for name in ended),
        *([] if system.broker_pid() == broker_pid else ["the broker is another one"]),
        *invariants.memory_stays_under_its_limit(watch),
        *invariants.cpu_stays_under_its_limit(watch),
        *invariants.it_was_looked_at_often_enough(watch),
        *invariants.each_task_ends_as_it_should(outcomes),
        *leftovers.problems(system, before),
    ]
    assert not problems, f"seed {SEED}:\n" + "\n".join(problems[:40]) + f"\n\nlogs and samples: {tmp_path}"


@contextmanager
def running_flower(system: System) -> Iterator[subprocess.Popen[bytes]]:
    """Flower, which listens to every event of the worker."""
    command = [sys.executable, "-W", "ignore", "-m", "celery", "--quiet", "-A", "agentlink.app", "flower"]
    command += ["--address=127.0.0.1", "--port=0", "--logging=error"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=system.environment(imports="tests.hogs.work"), stdin=subprocess.DEVNULL
    ) as flower:
        try:
            yield flower
        finally:
            flower.terminate()


@contextmanager
def watching(system: System, worker: Worker, flower: subprocess.Popen[bytes], folder: Path) -> Iterator[Watch]:
    """The sampler on everything that AgentLink runs."""
    pids = [worker.pid, system.broker_pid(), flower.pid]
    home = f"AGENTLINK_HOME={system.settings.home}"
    exact_above_bytes = int(0.9 * invariants.MEMORY_BYTES)
    with watched(pids, folder / "samples.csv", exact_above_bytes=exact_above_bytes, environment=home) as watch:
        yield watch


def wait_for_all(system: System, worker: Worker, ids: list[str]) -> list[int]:
    """Wait until every call has ended, at most as long as allowed; the numbers of those that have not."""
    deadline = time.monotonic() + DONE_WITHIN_S
    while (waiting := unready(system, ids)) and time.monotonic() < deadline and worker.process.poll() is None:
        time.sleep(0.5)  # each look takes the broker some CPU time, which is watched
    return waiting


def unready(system: System, ids: list[str]) -> list[int]:
    metas = system.client.mget([f"celery-task-meta-{task_id}" for task_id in ids])
    return [
        number for number, meta in enumerate(metas) if meta is None or json.loads(meta)["status"] not in READY_STATES
    ]


def read(calls: list[Call], ids: list[str], path: Path) -> list[Outcome]:
    attempts = ledger.read(path)
    outcomes = []
    for number, (call, task_id) in enumerate(zip(calls, ids, strict=True)):
        result = AsyncResult(task_id, app=app)
        tries = len(attempts.get(number, []))
        outcomes.append(Outcome(call=call, state=result.state, value=result.result, attempts=tries))
    return outcomes


def summary(outcomes: list[Outcome], watch: Watch, lasted_s: float) -> str:
    means, with_files = watch.cpu_fractions() or [0.0], watch.highest_with_files
    sizes = [watch.highest.own_bytes, invariants.MEMORY_BYTES, with_files.own_bytes + with_files.file_bytes]
    sizes += [statistics.median(sample.own_bytes for sample in watch.samples)]
    highest, limit, highest_with_files, median = (f"{size / 1e6:.0f} MB" for size in sizes)
    gaps_ms = watch.gap_s(0.95) * 1e3, watch.gap_s(1.0) * 1e3
    lines = [
        f"\nseed {SEED}, {CONCURRENCY} at a time: {len(outcomes)} tasks in {lasted_s:.0f} s",
        f"{len(watch.samples)} samples, 95 % within {gaps_ms[0]:.0f} ms, all within {gaps_ms[1]:.0f} ms",
        f"memory: highest {highest} of {limit}, median {median}; near it, with mapped files, {highest_with_files}",
        f"CPU in 10 s: highest {max(means):.1%}, median {statistics.median(means):.1%}",
    ]
    for name in sorted({outcome.call.name for outcome in outcomes}):
        those = [outcome for outcome in outcomes if outcome.call.name == name]
        ends = Counter(outcome.ending for outcome in those)
        words = ", ".join(f"{count} {ending}" for ending, count in ends.most_common())
        again = sum(max(0, outcome.attempts - 1) for outcome in those)
        lines.append(f"  {name:28}{words}" + (f"; begun again {again} times" if again else ""))
    return "\n".join(lines)
