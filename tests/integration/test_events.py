"""What is told of runs and steps, in the log and to a real receiver of Celery's events."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Any

import pytest
from celery import chain, group

from agentlink.broker import event_log
from agentlink.monitoring import events
from agentlink.monitoring.events import FIRST, Level
from tests.integration import sample
from tests.integration.system import System
from tests.integration.test_guard_events import heard
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
