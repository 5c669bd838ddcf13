"""What the guard tells to whoever listens to Celery's events."""

from __future__ import annotations

import inspect
import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from celery.events import dispatcher as celery_dispatcher
from celery.events.event import Event
from celery.worker.consumer import events as consumer_events

from resource_guard import Change, Level, Reading, Resource
from resource_guard.admission import Applicant
from resource_guard.events import GROUP, Events, let_through
from resource_guard.gate import Ended, Started
from resource_guard.reservations import Reservation
from resource_guard.valve import Position

MB = 1_000_000


class Dispatcher:
    """A dispatcher of events that makes them as Celery does."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.error: Exception | None = None

    def send(self, type_: str, **fields: Any) -> None:
        if self.error:
            raise self.error
        made = Event(type_, hostname="h", utcoffset=0, pid=1, clock=1, **fields)
        self.sent.append(json.loads(json.dumps(made)))


def sent(events: Events) -> list[dict[str, Any]]:
    """What a receiver would get, without what Celery adds."""
    dispatcher = Dispatcher()
    events.send(dispatcher)
    ours = dispatcher.sent
    for event in ours:
        for name in ("hostname", "utcoffset", "pid", "clock", "timestamp"):
            event.pop(name)
    return ours


def events() -> Events:
    return Events(clock=lambda: 1000.0)


def test_the_turns_of_the_valve() -> None:
    one = events()
    one.turned(Position(is_open=False, reason="too much", since=999.0), 0.0)
    one.turned(Position(is_open=True, reason="there is room", since=1001.0), 2.00049)
    assert sent(one) == [
        {"type": "guard-paused", "at_s": 1000.0, "reason": "too much"},
        {"type": "guard-resumed", "at_s": 1000.0, "reason": "there is room", "paused_s": 2.0},
    ]
    assert sent(one) == []


@pytest.mark.parametrize(
    ("resource", "reading", "fields"),
    [
        (
            Resource.MEMORY,
            Reading(value=9.0, limit=10.0),
            {"value_bytes": 9.0, "limit_bytes": 10.0, "where": ""},
        ),
        (
            Resource.CPU,
            Reading(value=0.9, limit=0.6, where="/a"),
            {"value_fraction": 0.9, "limit_fraction": 0.6, "where": "/a"},
        ),
        (
            Resource.PROCESSES,
            Reading(value=900, limit=1000),
            {"value_count": 900, "limit_count": 1000, "where": ""},
        ),
        (
            Resource.DISK_FREE,
            Reading(value=5, limit=10, floor=True, where="/tmp", unit="inodes"),
            {"value_count": 5, "limit_count": 10, "where": "/tmp"},
        ),
        (Resource.MEMORY, None, {}),
    ],
    ids=["bytes", "a share", "a count", "inodes", "not watched any more"],
)
def test_a_change_of_level_with_its_reading(
    resource: Resource, reading: Reading | None, fields: dict[str, object]
) -> None:
    one = events()
    one.changed(Change(resource=resource, before=Level.OK, after=Level.PAUSE, reason="so it is"), reading)
    assert sent(one) == [
        {
            "type": "guard-level", "at_s": 1000.0, "resource": resource.value, "before": "ok", "after": "pause",
            "reason": "so it is", **fields,
        }
    ]  # fmt: skip


def test_an_eviction_and_what_comes_after_it() -> None:
    request: Any = SimpleNamespace(
        id="the-id", name="a.task", ended=Ended(used_bytes=300 * MB, allowed_bytes=800 * MB, reserve_bytes=600 * MB)
    )
    one = events()
    one.evicted(
        Started(
            request=request,
            applicant=Applicant(key=1, memory_bytes=100 * MB),
            reserved=Reservation(memory_bytes=100 * MB, cpu_cores=0.0, declared=False),
            cap_bytes=800 * MB,
            started_at=0.0,
            use_bytes=0,
        ),
        "too much",
    )
    assert sent(one) == [
        {
            "type": "guard-evicted", "at_s": 1000.0, "task_id": "the-id", "task_name": "a.task", "reason": "too much",
            "used_bytes": 300 * MB, "reserved_bytes": 100 * MB, "allowed_bytes": 800 * MB, "next_bytes": 600 * MB,
        }
    ]  # fmt: skip


def test_of_many_that_can_not_be_sent_the_latest_are_kept() -> None:
    one = events()
    for number in range(1000):
        one.turned(Position(is_open=False, reason=str(number), since=0.0), 0.0)
    kept = [event["reason"] for event in sent(one)]
    assert kept == [str(number) for number in range(744, 1000)]


def test_a_dispatcher_that_fails_is_no_reason_to_fail(caplog: pytest.LogCaptureFixture) -> None:
    one, dispatcher = events(), Dispatcher()
    dispatcher.error = TypeError("no such field")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            one.turned(Position(is_open=False, reason="x", since=0.0), 0.0)
            one.send(dispatcher)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("groups", "after"), [({"worker"}, {"worker", GROUP}), (set(), set())], ids=["few", "all"])
def test_events_of_the_guard_are_let_through(groups: set[str], after: set[str]) -> None:
    """No groups at all are all of them, with `-E`."""
    dispatcher = SimpleNamespace(groups=groups)
    let_through(dispatcher)
    assert dispatcher.groups == after


def test_celerys_dispatcher_drops_events_of_groups_it_was_not_told_of() -> None:
    """Contract: and a worker that nobody has asked for events tells it of `worker` alone."""
    send = inspect.getsource(celery_dispatcher.EventDispatcher.send)
    assert "groups, group = self.groups, group_from(type)" in send
    assert "if groups and group not in groups:" in send
    assert celery_dispatcher.group_from("guard-paused") == GROUP
    assert "self.groups = None if task_events else ['worker']" in inspect.getsource(consumer_events.Events.__init__)
    assert "c.event_dispatcher = c.app.events.Dispatcher(" in inspect.getsource(consumer_events.Events.start)
