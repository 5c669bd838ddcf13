"""How tasks and runs end is counted, once each, whatever ends them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from agentlink.broker import outcomes, queues
from agentlink.broker.outcomes import BOUNDS_S
from tests.integration import sample, troubled, waiting_steps
from tests.integration.system import System
from tests.waiting import wait_until
from workflows import RunState

PREFIX = f"{sample.__name__}."


def ended(system: System, kind: str) -> dict[str, Mapping[str, int]]:
    return {name.removeprefix(PREFIX): of.ended for name, of in outcomes.read(system.client, kind).items()}


def test_what_becomes_of_tasks_is_counted(system: System) -> None:
    """Also what its process has not lived to tell."""
    system.start_worker(imports=troubled.IMPORTS)
    sums = [sample.add.delay(number, 1) for number in range(20)]
    others = [
        sample.fail.delay("no"),
        sample.flaky.delay(1),
        sample.hand_over.delay(1),
        sample.wait_for_a_second.delay(),
    ]
    others += [sample.die.delay(str(system.folder / "never there"))]
    assert [one.get(timeout=20) for one in sums] == [number + 1 for number in range(20)]
    for one in others:
        one.get(timeout=20, propagate=False)
    expected = {
        "add": {"succeeded": 22},  # two of them have done it for `hand_over`
        "fail": {"failed": 1},
        "flaky": {"retried": 1, "succeeded": 1},
        "hand_over": {"passed_on": 1},
        "wait_for_a_second": {"failed": 1},
        "die": {"died": 2, "buried": 1},
    }
    wait_until(lambda: ended(system, "task") == expected, what=f"{expected}, not {ended(system, 'task')}")
    known = outcomes.read(system.client, "task")
    add, late = known[sample.add.name], known[sample.wait_for_a_second.name]
    assert sum(add.ran.buckets) == sum(add.waited.buckets) == 22
    assert 0 < add.ran.sum_s < 5
    assert late.ran.buckets.index(1) == BOUNDS_S.index(5)  # it has taken a second and a little
    assert 1 < late.ran.sum_s < 5


def test_how_long_tasks_have_waited_is_counted(system: System) -> None:
    """From when they were queued to when a process began them; not what they wait for their time."""
    waited = sample.add.delay(1, 1)
    delayed = sample.twice.apply_async((1,), countdown=3)
    wait_until(lambda: _age_s(system) > 1.1, what="a second")
    system.start_worker()
    waited.get(timeout=20)
    delayed.get(timeout=20)
    wait_until(lambda: len(ended(system, "task")) == 2, what="both counts")
    known = outcomes.read(system.client, "task")
    assert known[sample.add.name].waited.sum_s > 1.1
    assert known[sample.twice.name].waited.sum_s < 1


def test_what_waits_for_a_signal_has_not_waited_for_a_worker(system: System) -> None:
    system.start_worker(imports=waiting_steps.IMPORTS)
    run = waiting_steps.asks_last.delay()
    wait_until(run.waiting, what="the step that waits")
    asked_at = time.monotonic()
    wait_until(lambda: time.monotonic() > asked_at + 2, what="two seconds")
    run.signal("approval", True)
    run.get(timeout=20)
    name = "workflows.wait_for"
    wait_until(lambda: sum(ended(system, "task").get(name, {}).values()) == 2, what="its two bodies")
    assert ended(system, "task")[name] == {"passed_on": 1, "succeeded": 1}
    assert outcomes.read(system.client, "task")[name].waited.sum_s < 1.5


def test_runs_are_counted_in_the_step_that_ends_them(system: System, tmp_path: Path) -> None:
    system.start_worker()
    assert sample.double.delay(1).get(timeout=20) == 4
    assert ended(system, "run") == {"double": {"succeeded": 1}}
    failed = sample.one_fails.delay("no")
    wait_until(lambda: failed.progress.ended, what="its end")
    cancelled = sample.waits.delay(str(tmp_path / "never"), str(tmp_path / "started"))
    wait_until((tmp_path / "started").exists, what="its start")
    cancelled.cancel()
    assert cancelled.progress.state is RunState.CANCELLED
    assert ended(system, "run") == {
        "double": {"succeeded": 1},
        "one_fails": {"failed": 1},
        "waits": {"cancelled": 1},
    }
    known = outcomes.read(system.client, "run")[sample.double.name]
    assert sum(known.ran.buckets) == sum(known.waited.buckets) == 1


def test_a_worker_that_stops_tells_of_its_last_tasks(system: System) -> None:
    worker = system.start_worker()
    sample.add.delay(1, 1).get(timeout=20)
    worker.stop()
    assert ended(system, "task") == {"add": {"succeeded": 1}}


def _age_s(system: System) -> float:
    seconds, microseconds = system.client.time()
    return float(seconds + microseconds / 1e6 - queues.waiting_since(system.client, ["cpu"])["cpu"])
