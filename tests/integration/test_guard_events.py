"""The guard's events, as a listener to Celery's events gets them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from tasks import app
from tests.integration import hungry, sample
from tests.integration.system import System
from tests.waiting import wait_until

LIMITS = {"memory": "1000MB", "memory_free": "0", "cpu": "100%"}


@contextmanager
def heard(*types: str) -> Iterator[list[dict[str, Any]]]:
    """The events of these types that come meanwhile, as a real receiver gets them."""
    events: list[dict[str, Any]] = []
    over, listening = threading.Event(), threading.Event()

    def keep(event: dict[str, Any]) -> None:
        if event["type"] in types:
            events.append(event)

    def listen() -> None:
        with app.connection_for_read() as first:
            receiver = app.events.Receiver(first, handlers={"*": keep})
            with receiver.consumer_context(wakeup=False) as (connection, *_):
                listening.set()
                while not over.is_set():
                    with suppress(TimeoutError):
                        connection.drain_events(timeout=0.2)

    thread = threading.Thread(target=listen)
    thread.start()
    listening.wait(10)
    try:
        yield events
    finally:
        over.set()
        thread.join()


def limit(system: System, *limits: str) -> None:
    """Ask for other limits, or for those of the settings again."""
    words = {"arguments": {"limits": list(limits)}, "reply": True, "timeout": 5, "limit": 1}
    done = system.python(f"from tasks import app\nassert app.control.broadcast('guard_limits', **{words})")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("options", [(), ("-E",)], ids=["nobody asked for events", "with -E"])
def test_a_pause_and_its_end_are_told(system: System, options: tuple[str, ...]) -> None:
    """By a worker that sends no events of tasks as well."""
    system.start_worker(*options, **LIMITS)
    with heard("guard-paused", "guard-resumed", "guard-level") as events:
        limit(system, "memory_free=100TB")
        wait_until(lambda: len(events) >= 2, what="the pause")
        limit(system)
        wait_until(lambda: events[-1]["type"] == "guard-level" and len(events) >= 4, what="its end")
    assert {event["hostname"] for event in events} == {"worker0@test"}
    paused, level, *_, resumed, level_again = events
    assert paused["type"] == "guard-paused"
    assert "memory available on this machine" in paused["reason"]
    assert (level["type"], level["resource"], level["before"]) == ("guard-level", "memory_free", "ok")
    assert level["limit_bytes"] == 100e12 > level["value_bytes"] > 0
    assert resumed["type"] == "guard-resumed"
    assert 1 <= resumed["paused_s"] <= resumed["at_s"] - paused["at_s"] + 0.1
    assert (level_again["after"], level_again["limit_bytes"]) == ("ok", 0)


def test_an_eviction_is_told_with_what_was_taken_and_allowed(system: System) -> None:
    """And that its task has failed, which Celery itself does not know."""
    worker = system.start_worker("-E", imports="tests.integration.sample,tests.integration.hungry", **LIMITS)
    folder = system.folder / "programs"
    folder.mkdir()
    with heard("guard-evicted", "task-failed") as events:
        result = hungry.start_programs.delay(str(folder), 3)
        result.get(timeout=20, propagate=False)
        wait_until(lambda: len(events) == 2, what="the events")
    event, failed = sorted(events, key=lambda one: one["type"])
    assert (failed["uuid"], failed["exception"].partition("(")[0]) == (result.id, "MemoryLimitExceeded")
    assert (event["type"], event["task_id"], event["task_name"]) == (
        "guard-evicted", result.id, hungry.start_programs.name,
    )  # fmt: skip
    assert (event["reserved_bytes"], event["allowed_bytes"], event["next_bytes"]) == (100_000_000, 142_000_000, None)
    assert event["used_bytes"] > 142_000_000
    assert sample.add.delay(1, 2).get(timeout=10) == 3
    assert "was not sent" not in worker.log
