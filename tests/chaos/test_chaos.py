"""Everything that can be killed or stopped is, while tasks run: nothing is lost, and nothing runs twice for no reason.

    make chaos [SEED=7] [TASKS=5000]

The dice have a seed, which a failure names. It fixes what is called and which faults come, not how they meet.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

from tests.chaos import invariants, ledger
from tests.chaos.calls import Calls
from tests.chaos.cluster import Cluster
from tests.chaos.faults import Dice, Event

SEED = int(os.environ.get("CHAOS_SEED") or random.randrange(10_000))
TASKS = int(os.environ.get("CHAOS_TASKS") or 600)
#: With everything mended, all that is queued is done by then; tasks whose process died wait for seconds at most.
REST_WITHIN_S = 60.0

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240 + TASKS // 10)]


@dataclass
class Results:
    """The first result seen of each task; a later one that differs is a violation."""

    cluster: Cluster
    seen: dict[int, str] = field(default_factory=dict)

    def look(self, accepted: dict[int, str]) -> None:
        """Look for those not seen yet, if the broker is there."""
        missing = [number for number in list(accepted) if number not in self.seen]  # calls are made meanwhile
        with contextlib.suppress(redis.RedisError):
            self.seen |= self._read(missing, accepted)

    def changed(self, accepted: dict[int, str]) -> list[str]:
        """Results that are not what they once were."""
        now = self._read(list(self.seen), accepted)
        return [
            f"task {number} had the result of {first}, now of {now.get(number)}"
            for number, first in self.seen.items()
            if now.get(number) != first
        ]

    def _read(self, numbers: list[int], accepted: dict[int, str]) -> dict[int, str]:
        if not numbers:
            return {}
        values = self.cluster.client.mget([f"celery-task-meta-{accepted[number]}" for number in numbers])
        metas = {number: json.loads(value) for number, value in zip(numbers, values, strict=True) if value}
        return {number: meta["result"] for number, meta in metas.items() if meta["status"] == "SUCCESS"}


def test_nothing_is_lost_and_nothing_runs_twice_without_a_cause(cluster: Cluster, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    path = tmp_path / "ledger"
    path.touch()
    calls = Calls(TASKS, path, random.Random(rng.random()))
    dice = Dice(cluster, random.Random(rng.random()))
    results = Results(cluster)
    began_at = time.monotonic()
    cluster.fill_up()
    calls.start()
    try:
        while calls.going_on:
            dice.roll()
            results.look(calls.accepted)
            time.sleep(0.05)  # between two throws of the dice
    finally:
        dice.mend()
        calls.stop()
    _wait_for_the_rest(cluster, calls, results)
    waited_s = time.monotonic() - began_at
    for worker in cluster.alive:
        worker.stop()
    attempts = ledger.read(path)
    problems = [
        *calls.errors,
        *cluster.problems,
        *(f"task {number} ({calls.accepted[number]}) has no result" for number in calls.accepted.keys() - results.seen),
        *results.changed(calls.accepted),
        *invariants.each_ended(calls.accepted, attempts),
        *invariants.none_ran_unasked(calls.refused, attempts),
        *invariants.each_result_is_of_an_attempt(results.seen, attempts),
        *invariants.each_repetition_has_a_cause(attempts, dice.events),
        *invariants.each_run_is_complete(calls.runs),
        *invariants.nothing_is_left(cluster),
    ]
    print(_summary(calls, dice.events, attempts, waited_s))
    assert not problems, _report(problems, dice.events, cluster)


def _wait_for_the_rest(cluster: Cluster, calls: Calls, results: Results) -> None:
    deadline = time.monotonic() + REST_WITHIN_S
    while time.monotonic() < deadline:
        cluster.fill_up()
        results.look(calls.accepted)
        if len(results.seen) == len(calls.accepted) and all(run.ready() for run, _ in calls.runs):
            return
        time.sleep(0.1)  # polls: what has not come by the deadline is a violation, listed with all others


def _summary(calls: Calls, events: list[Event], attempts: invariants.Attempts, waited_s: float) -> str:
    repeated = sum(len(tries) > 1 for tries in attempts.values())
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(Counter(event.kind for event in events).items()))
    return (
        f"\nseed {SEED}: {len(calls.accepted)} tasks, {len(calls.refused)} refused, {len(calls.runs)} workflows, "
        f"{repeated} tasks ran more than once, {waited_s:.0f} s, {len(events)} faults: {kinds}"
    )


def _report(problems: list[str], events: list[Event], cluster: Cluster) -> str:
    happened = "\n".join(map(str, events))
    return (
        f"seed {SEED} (CHAOS_SEED={SEED} CHAOS_TASKS={TASKS}), {len(problems)} violations:\n"
        + "\n".join(problems[:30])
        + f"\n\nwhat happened:\n{happened}\n\nlogs and ledger: {cluster.folder}"
    )
