"""What is told of runs and steps, in the log and to a real receiver of Celery's events."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import redis
from celery import group

from agentlink.broker import event_log
from agentlink.monitoring import events
from agentlink.monitoring.events import FIRST, Level
from agentlink.monitoring.watching import LEADER_KEY
from tasks import app
from tests.integration import sample, waiting_steps
from tests.integration.system import System
from tests.integration.test_guard_events import heard, limit
from tests.waiting import wait_until
from workflows import WorkflowRun


def kinds(system: System, run: WorkflowRun | None = None) -> Counter[str]:
    """How many events of each kind are in the log: all, or those of a run."""
    found = events.read(system.client, FIRST, 100_000)
    return Counter(event.kind for event in found if run is None or event.fields.get("run_id") == run.id)


def test_a_run_and_its_steps_are_told_in_the_order_in_which_they_happen(system: System) -> None:
    """In the log, and to whoever listens to Celery's events, with the time at which it happened."""
    system.start_worker()
    with heard(*events.KINDS) as received:
        run = sample.double.delay(1)
        assert run.get(timeout=20) == 4
        wait_until(lambda: any(event["type"] == "workflow-succeeded" for event in received), what="the end, received")
    told = events.read(system.client, FIRST, 1000)
    assert [event.kind for event in told] == [
        "workflow-called", "workflow-started",
        "step-started", "step-succeeded", "step-started", "step-succeeded", "workflow-succeeded",
    ]  # fmt: skip
    assert [event["type"] for event in received] == [event.kind for event in told]
    assert [event["timestamp"] for event in received] == [event.at for event in told]
    called, _, started, succeeded, *_, ended = told
    assert called.fields == {"run_id": run.id, "workflow": sample.double.name, "arguments": "1"}
    assert {"run_id", "step_id", "name", "attempt", "worker", "place"} == started.fields.keys()
    assert started.fields["worker"] == "worker0@test"
    assert 0 <= succeeded.fields["took_s"] <= ended.fields["took_s"] < 20
    for event in told:
        assert event.fields.keys() <= set(events.KINDS[event.kind].fields)


def test_a_failure_is_told_with_what_has_failed(system: System) -> None:
    """Of a step that is none of a run too, where its process had died once too often."""
    system.start_worker()
    run = sample.one_fails.delay("no \N{GREEK SMALL LETTER ALPHA}" + 1000 * "\N{EURO SIGN}")
    run.get(timeout=20, propagate=False)
    sample.die.delay("nowhere").get(timeout=20, propagate=False)
    (failed,) = events.read(system.client, FIRST, 1, {"step-failed"})
    assert failed.fields["error"].startswith("ValueError: no α€€€")
    assert len(failed.fields["error"].encode()) <= 500
    (ended,) = events.read_latest(system.client, 1, {"workflow-failed"})
    assert (ended.fields["run_id"], ended.fields["step_id"]) == (run.id, failed.fields["step_id"])
    (buried,) = events.read_latest(system.client, 5, {"step-buried"})
    assert (buried.fields["name"], buried.fields["attempts"]) == (sample.die.name, 3)


def test_how_much_is_told_is_changed_while_all_runs(system: System) -> None:
    """By setting, and by order, which wins."""
    system.start_worker(events="basic")
    wait_until(lambda: events.level_now(system.client) is Level.BASIC, what="the worker's settings")

    def told(level: Level | None) -> Counter[str]:
        events.order_level(system.client, level)
        good, bad = sample.double.delay(1), sample.one_fails.delay("no")
        good.get(timeout=20)
        bad.get(timeout=20, propagate=False)
        return kinds(system, good) + kinds(system, bad)

    assert told(None) == {"workflow-failed": 1}
    assert told(Level.OFF) == {}
    standard = {"workflow-called": 2, "workflow-started": 2, "workflow-succeeded": 1, "workflow-failed": 1}
    assert told(Level.STANDARD) == {**standard, "step-failed": 1}
    full = told(Level.FULL)
    assert full["step-started"] >= 3
    assert full["step-succeeded"] >= 2
    assert told(None) == {"workflow-failed": 1}


def test_above_a_rate_some_are_told_and_how_many_were_not(system: System) -> None:
    """Each event was told or counted, and all failures were told."""
    system.start_worker(events_rate="20")
    wait_until(lambda: system.client.hget(event_log.HOW_KEY, "rate") == "20", what="the worker's settings")
    runs = [sample.parallel.delay(100), *(sample.one_fails.delay(f"no {number}") for number in range(5))]
    for run in runs:
        run.get(timeout=30, propagate=False)

    def all_of(kind: str) -> int:
        told = kinds(system)[kind]
        summaries = events.read(system.client, FIRST, 1000, {"step-summary"})
        return told + sum(one.fields["left_out"].get(kind, 0) for one in summaries if "worker" not in one.fields)

    wait_until(lambda: all_of("step-started") >= 101, what="the summaries")
    assert kinds(system)["step-started"] < 101
    assert kinds(system)["workflow-failed"] == kinds(system)["step-failed"] == 5
    assert all_of("workflow-called") == all_of("workflow-started") == 6
    assert all_of("workflow-succeeded") == 1


def test_waiting_being_answered_and_going_on_are_told(system: System) -> None:
    system.start_worker(imports="tests.integration.sample,tests.integration.waiting_steps")
    run = waiting_steps.asks.delay()
    wait_until(lambda: run.waiting(), what="the question")
    run.signal("approval", "yes")
    assert run.get(timeout=20) == "yes"
    failed = sample.one_fails.delay("no")
    failed.get(timeout=20, propagate=False)
    failed.resume()
    failed.get(timeout=20, propagate=False)
    wait_until(lambda: kinds(system, failed)["workflow-failed"] == 2, what="its second failure")
    waiting, answered = events.read(system.client, FIRST, 2, {"step-waiting", "step-signalled"})
    assert (waiting.kind, waiting.fields["run_id"], waiting.fields["waiting_for"]) == (
        "step-waiting",
        run.id,
        "approval",
    )
    assert (answered.kind, answered.fields["run_id"], answered.fields["signal"]) == (
        "step-signalled", run.id, "approval",
    )  # fmt: skip
    assert waiting.fields["step_id"] == answered.fields["step_id"]
    assert kinds(system, failed)["workflow-resumed"] == 1
    cancelled = waiting_steps.asks.delay()
    wait_until(lambda: cancelled.waiting(), what="the question")
    cancelled.cancel()
    assert kinds(system, cancelled)["workflow-cancelled"] == 1


def test_events_of_the_guard_are_in_the_log(system: System) -> None:
    system.start_worker(memory="1000MB", memory_free="0", cpu="100%")
    limit(system, "memory_free=100TB")
    wait_until(lambda: kinds(system)["guard-paused"], what="the pause")
    (paused,) = events.read(system.client, FIRST, 1, {"guard-paused"})
    assert paused.fields["worker"] == "worker0@test"
    assert "memory available" in paused.fields["reason"]


def test_a_broker_that_goes_away_changes_nothing_for_tasks_and_telling_goes_on(system: System) -> None:
    """Nothing is told twice in the log, and what happens later is received."""
    worker = system.start_worker()
    first = sample.double.delay(1)
    assert first.get(timeout=20) == 4
    system.restart_broker()
    with heard("workflow-succeeded") as received:
        second = sample.double.delay(2)
        assert second.get(timeout=20) == 8
        wait_until(lambda: [event["run_id"] for event in received][-1:] == [second.id], what="the second run's end")
    for run in (first, second):
        assert kinds(system, run) == {
            "workflow-called": 1, "workflow-started": 1, "workflow-succeeded": 1,
            "step-started": 2, "step-succeeded": 2,
        }  # fmt: skip
    assert "Traceback" not in worker.log


def test_who_listens_and_never_reads_holds_nobody_up(system: System) -> None:
    """A listener whose process is stopped, say: the broker keeps for it what it may, and then breaks with it."""
    system.start_worker()
    listener = redis.UnixDomainSocketConnection(path=str(system.settings.socket_path))
    listener.connect()
    listener.send_command("PSUBSCRIBE", "*celeryev*")
    began_at = time.monotonic()
    for number in range(20):
        assert sample.double.delay(number).get(timeout=20) == 4 * number
    assert time.monotonic() - began_at < 20
    with heard("workflow-succeeded") as received:
        last = sample.double.delay(1)
        last.get(timeout=20)
        wait_until(lambda: [event["run_id"] for event in received][-1:] == [last.id], what="the last run's end")
    listener.disconnect()


def test_another_worker_goes_on_where_the_one_that_sent_was_killed(system: System) -> None:
    """Within seconds; whoever listens hears of each event, and of hardly any twice."""
    first, second = system.start_worker(), system.start_worker()
    with heard("workflow-called", "workflow-succeeded") as received:
        runs = [sample.double.delay(1)]
        runs[0].get(timeout=20)
        wait_until(lambda: len(received) == 2, what="the first run's end")
        leader = system.client.get(LEADER_KEY)
        dead, alive = (first, second) if leader == f"{first.name}@test" else (second, first)
        dead.kill()
        runs += [sample.double.delay(number) for number in range(10)]
        for run in runs:
            run.get(timeout=30)
        ends = [run.id for run in runs]
        wait_until(lambda: {event["run_id"] for event in received} >= set(ends), what="all runs' ends")
        wait_until(lambda: len(received) >= 22, what="all events")
    assert system.client.get(LEADER_KEY) == f"{alive.name}@test"
    assert [event["run_id"] for event in received if event["type"] == "workflow-called"][:11] == ends


def test_events_of_tasks_are_sent_once_somebody_asks(system: System) -> None:
    """All of them of a worker that had sent none before."""
    system.start_worker()
    assert sample.add.delay(1, 1).get(timeout=10) == 2
    app.control.enable_events()
    with heard("task-received", "task-started", "task-succeeded") as received:
        result = sample.add.delay(1, 2)
        assert result.get(timeout=10) == 3
        wait_until(lambda: len(received) == 3, what="its events")
    assert [(event["type"], event["uuid"]) for event in received] == [
        ("task-received", result.id), ("task-started", result.id), ("task-succeeded", result.id),
    ]  # fmt: skip


def test_above_a_rate_events_of_some_tasks_are_sent_and_of_all_that_fail(system: System) -> None:
    """Of each task all or nothing, and how many were not sent is told."""
    system.start_worker("-E", events_rate="30")
    with heard("task-received", "task-started", "task-succeeded", "task-failed", "step-summary") as received:
        results = [*group(sample.add.s(number, 1) for number in range(150)).apply_async().results]
        results += [sample.fail.delay("no") for _ in range(5)]
        for result in results:
            result.get(timeout=30, propagate=False)

        def of(kind: str) -> list[dict[str, Any]]:
            return [event for event in received if event["type"] == kind]

        def left_out(kind: str) -> int:
            return sum(event["left_out"].get(kind, 0) for event in of("step-summary") if "worker" in event)

        wait_until(
            lambda: (
                len(of("task-received")) + left_out("task-received") == 155
                and len(of("task-succeeded")) + left_out("task-succeeded") == 150
            ),
            what="all events, sent or counted",
        )
    assert len(of("task-succeeded")) < 150
    assert {event["uuid"] for event in of("task-failed")} == {result.id for result in results[150:]}
    told = {event["uuid"] for event in of("task-received")}
    assert told == {event["uuid"] for kind in ("task-succeeded", "task-failed") for event in of(kind)}
