"""Which of Celery's events of tasks are sent when there are many: of each task all or none, and of failures all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery.app.events import Events as CeleryEvents
from celery.events import EventDispatcher

from tasks import app, events
from tasks.events import Dispatcher, Thinning, take_left_out

LIFE = ("task-received", "task-started", "task-succeeded")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What Celery's own dispatcher is given."""
    sent: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(EventDispatcher, "__init__", lambda self, **_: vars(self).update(groups=set(), enabled=True))
    monkeypatch.setattr(EventDispatcher, "send", lambda _, kind, **fields: sent.append((kind, fields)))
    monkeypatch.setattr(events, "load", lambda: SimpleNamespace(events_rate=9))
    take_left_out()
    return sent


def told(thinning: Thinning, task_id: str) -> list[str]:
    """Of the events of a task's life those that are let through."""
    return [kind for kind in LIFE if not thinning.leaves_out(kind, {"uuid": task_id})]


def test_up_to_the_rate_all_is_told_and_then_one_task_in_a_hundred(clock: Clock) -> None:
    thinning = Thinning(9, clock)
    lives = [told(thinning, f"task {number}") for number in range(300)]
    whole = [number for number, life in enumerate(lives) if life == list(LIFE)]
    assert whole == [0, 1, 2, 99, 199, 299]
    assert sum(map(len, lives)) == 3 * len(whole)
    clock.now += 1
    assert told(thinning, "one of the next second") == list(LIFE)


def test_a_task_of_which_nothing_was_said_is_told_of(clock: Clock) -> None:
    """It had begun before anybody asked for events."""
    assert not Thinning(9, clock).leaves_out("task-succeeded", {"uuid": "unknown"})


def test_what_is_kept_of_tasks_that_are_left_out_is_bounded(clock: Clock) -> None:
    thinning = Thinning(3, clock)
    for number in range(events._KEPT + 500):
        thinning.leaves_out("task-received", {"uuid": f"task {number}"})
    assert len(thinning._kept) == events._KEPT


def test_a_task_that_fails_is_told_of_as_a_whole(sent: list[tuple[str, dict[str, Any]]]) -> None:
    """Also where it was left out so far: whoever hears of it learns its name; and it is not counted as left out."""
    dispatcher = Dispatcher()
    for number in range(5):
        dispatcher.send("task-received", uuid=f"task {number}", name="add")
    assert [fields["uuid"] for _, fields in sent] == ["task 0", "task 1", "task 2"]
    dispatcher.send("task-failed", uuid="task 4", exception="no")
    assert sent[3:] == [
        ("task-received", {"uuid": "task 4", "name": "add"}),
        ("task-failed", {"uuid": "task 4", "exception": "no"}),
    ]
    dispatcher.send("task-succeeded", uuid="task 3")
    assert len(sent) == 5
    assert take_left_out() == {"task-received": 1, "task-succeeded": 1}
    assert take_left_out() == {}


def test_while_nobody_asks_nothing_is_chosen_or_counted(sent: list[tuple[str, dict[str, Any]]]) -> None:
    dispatcher = Dispatcher()
    dispatcher.groups = {"worker"}
    for number in range(9):
        dispatcher.send("task-received", uuid=f"task {number}")
    dispatcher.send("worker-heartbeat", freq=2)
    assert [kind for kind, _ in sent] == ["worker-heartbeat"]
    assert take_left_out() == {}


def test_the_parts_of_celery_used_here_are_there() -> None:
    assert CeleryEvents.dispatcher_cls == "celery.events.dispatcher:EventDispatcher"
    assert issubclass(app.events.Dispatcher, Dispatcher)
