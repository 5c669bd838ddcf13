"""The guard's loop and its valve: what they do, say, survive, and how they start and stop."""

from __future__ import annotations

import json
import logging
import pickle
import time
from dataclasses import asdict, replace

import pytest

from resource_guard import (
    Change,
    Guard,
    Level,
    Reading,
    Resource,
    SensorError,
)
from resource_guard.steering import Orders
from resource_guard.valve import Position
from tests.unit.made_guard import LIMITS, MB, Crew, Make, Readings


def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records]


def look(guard: Guard, readings: Readings, *looks: tuple[float, int]) -> None:
    """Look at each of these times, with so many MB used."""
    for readings.now, readings.memory_mb in looks:
        guard.tick()


def test_pressure_closes_the_valve_and_its_end_opens_it(guard: Guard, readings: Readings) -> None:
    """Sense, decide, act: one look is enough to close, and after the rest one look is enough to open."""
    look(guard, readings, (0, 100))
    assert guard.valve.is_open
    look(guard, readings, (0, 270))
    assert not guard.valve.is_open
    look(guard, readings, (2, 100))
    assert guard.valve.is_open
    assert guard.counts == {"pauses": 1, "memory_pause": 1, "memory_ok": 1, "paused_ms": 2000}


def test_only_a_change_is_logged_with_value_and_limit(
    guard: Guard, readings: Readings, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten looks a second must not make ten lines a second."""
    with caplog.at_level(logging.INFO):
        look(guard, readings, (0, 100), (1, 270), (3, 280), (5, 240), (7, 200), (9, 200))
    assert messages(caplog) == [
        (
            logging.WARNING,
            (
                "takes no new tasks: memory of this worker's processes 270 MB is over the soft limit 255 MB "
                "(85% of 300 MB)"
            ),
        ),
        (
            logging.INFO,
            "takes tasks again after 6.0 s: memory of this worker's processes 200 MB is below 225 MB (75% of 300 MB)",
        ),
    ]


def test_levels_that_turn_no_valve_are_said_as_they_begin_and_end(
    guard: Guard, readings: Readings, caplog: pytest.LogCaptureFixture
) -> None:
    """Above the hard mark work is ended, and a busy CPU slows it down: neither is seen by the valve."""
    with caplog.at_level(logging.INFO):
        look(guard, readings, (0, 270), (2, 290), (4, 270), (6, 100))
        for readings.cpu_fraction in (0.96, 0.97, 0.5):
            guard.tick()
    levels_and_starts = [(level, text.split(": memory of")[0].split(": CPU")[0]) for level, text in messages(caplog)]
    assert levels_and_starts == [
        (logging.WARNING, "takes no new tasks"),
        (logging.WARNING, "memory: evict, was pause"),
        (logging.INFO, "memory: pause, was evict"),
        (logging.INFO, "takes tasks again after 6.0 s"),
        (logging.WARNING, "cpu: throttle, was ok"),
        (logging.INFO, "cpu: ok, was throttle"),
    ]


def test_a_cpu_over_its_hard_mark_closes_nothing(guard: Guard, readings: Readings) -> None:
    """What runs is slowed down; that something new starts costs nobody his work."""
    readings.cpu_fraction = 1.2
    guard.tick()
    assert guard.last_decision.level is Level.EVICT
    assert guard.valve.is_open


def test_each_change_is_told_to_who_wants_to_know(make: Make, readings: Readings) -> None:
    changes: list[tuple[Change, Reading | None]] = []
    turns: list[tuple[Position, float]] = []
    guard = make(on_change=lambda *told: changes.append(told), on_turn=lambda *told: turns.append(told))
    look(guard, readings, (0, 270), (0.1, 271), (0.2, 290), (2, 100))
    assert [(one.resource, one.before, one.after, reading and reading.value) for one, reading in changes] == [
        (Resource.MEMORY, Level.OK, Level.PAUSE, 270 * MB),
        (Resource.MEMORY, Level.PAUSE, Level.EVICT, 290 * MB),
        (Resource.MEMORY, Level.EVICT, Level.OK, 100 * MB),
    ]
    assert [(position.is_open, paused_s) for position, paused_s in turns] == [(False, 0.0), (True, 2.0)]


def test_status_is_plain_data_that_says_what_holds_the_worker_now(make: Make, readings: Readings) -> None:
    """What `celery inspect guard` shows; it goes through JSON."""
    guard = make(crew=Crew())
    assert guard.status()["resources"] == {}
    look(guard, readings, (0, 270), (5, 240))
    assert json.loads(json.dumps(guard.status())) == {
        "state": "paused",
        "reason": "memory of this worker's processes 240 MB is not yet below 225 MB (75% of 300 MB)",
        "since": 1234.5,
        "dry_run": False,
        "resources": {
            "memory": {
                "level": "pause",
                "value": 240 * MB,
                "limit": 300 * MB,
                "floor": False,
                "fraction": 0.8,
                "where": "",
                "unit": "",
                "reason": "memory of this worker's processes 240 MB is not yet below 225 MB (75% of 300 MB)",
            }
        },
        "stalled": {"memory": 0.5},
        "ordered": {"paused": False, "reason": "", "until": None, "limits": {}},
        "counts": {"pauses": 1, "memory_pause": 1},
        "latest_s": 0.0,
        "tasks": {"running": 3},
    }
    look(guard, readings, (6, 100))
    assert guard.status()["state"] == "ok"


def test_its_own_errors_are_said_once_a_kind_and_survived(
    guard: Guard, readings: Readings, caplog: pytest.LogCaptureFixture
) -> None:
    """A guard that dies guards nothing, and one that repeats itself fills the disk."""
    for readings.error in [
        SensorError("memory", "no file"),
        SensorError("memory", "no line"),
        KeyError("bug"),
        KeyError("bug"),
    ]:
        guard.tick()
    assert messages(caplog) == [
        (logging.WARNING, "the guard skips a look: memory can't be read: no file (said once)"),
        (logging.ERROR, "the guard goes on after an error of its own (said once)"),
    ]
    assert caplog.records[1].exc_info
    readings.error = None
    look(guard, readings, (0, 270))
    assert not guard.valve.is_open


def test_a_failed_look_changes_nothing(guard: Guard, readings: Readings) -> None:
    """Paused stays paused: not knowing is no reason to take more work."""
    look(guard, readings, (0, 270))
    before = guard.last_observation
    readings.error, readings.now = SensorError("memory", "no file"), 60.0
    guard.tick()
    assert not guard.valve.is_open
    assert guard.last_observation == before


def test_a_crew_that_fails_does_not_keep_the_valve_from_turning(make: Make, readings: Readings) -> None:
    crew = Crew()
    crew.error = RuntimeError("bug")
    guard = make(crew=crew)
    look(guard, readings, (0, 270))
    assert not guard.valve.is_open
    look(guard, readings, (2, 100))
    assert guard.valve.is_open
    assert [level for _, level in crew.looks] == [Level.PAUSE, Level.OK]


class TestThePauseByHand:
    def test_it_closes_the_valve_with_the_reason_given_until_it_is_taken_back(self, guard: Guard) -> None:
        guard.steering.follow(Orders(paused=True, reason="for lunch"))
        guard.tick()
        assert (guard.valve.is_open, guard.valve.reason) == (False, "paused by hand: for lunch")
        guard.steering.follow(Orders())
        guard.tick()
        assert guard.valve.is_open

    def test_it_ends_by_itself_at_its_time(self, guard: Guard) -> None:
        guard.steering.follow(Orders(paused=True, until=time.time() + 3600))
        guard.tick()
        assert not guard.valve.is_open
        guard.steering.follow(Orders(paused=True, until=time.time() - 0.001))
        guard.tick()
        assert guard.valve.is_open

    def test_what_a_limit_asks_for_goes_on_after_it_and_says_so(self, guard: Guard, readings: Readings) -> None:
        """The reason shown is always the one that holds now."""
        guard.steering.follow(Orders(paused=True))
        look(guard, readings, (0, 270))
        assert guard.valve.reason == "paused by hand"
        guard.steering.follow(Orders())
        look(guard, readings, (1, 270))
        assert not guard.valve.is_open
        assert "is over the soft limit" in guard.valve.reason
        assert guard.counts["pauses"] == 1


class TestADryRun:
    def test_it_says_once_what_it_would_do_and_does_nothing(
        self, make: Make, readings: Readings, caplog: pytest.LogCaptureFixture
    ) -> None:
        guard = make(dry_run=True)
        with caplog.at_level(logging.INFO):
            look(guard, readings, (0, 270), (1, 280), (3, 100), (5, 270))
        assert guard.valve.is_open
        assert [text.partition(": ")[0] for _, text in messages(caplog)] == ["would take no new tasks"] * 2
        assert guard.status()["dry_run"]

    def test_a_pause_by_hand_is_no_exception(self, make: Make) -> None:
        guard = make(dry_run=True)
        guard.steering.follow(Orders(paused=True))
        guard.tick()
        assert guard.valve.is_open


class TestLimitsChangedOnARunningGuard:
    def test_they_hold_from_the_next_look_and_the_settings_own_come_back(self, make: Make) -> None:
        crew = Crew()
        guard = make(crew=crew)
        for orders in (Orders(), Orders(limits={"memory": 6e9, "cpu": 0.5}), Orders(limits={"memory": 7e9}), Orders()):
            guard.steering.follow(orders)
            guard.tick()
        changed = replace(LIMITS, memory_bytes=6_000_000_000, cpu_fraction=0.5)
        assert [limits for limits, _ in crew.looks] == [
            LIMITS, changed, replace(LIMITS, memory_bytes=7_000_000_000), LIMITS,
        ]  # fmt: skip
        assert guard.status()["ordered"] == asdict(Orders())

    def test_orders_of_a_version_that_knows_other_limits_skip_one_look(
        self, guard: Guard, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What is kept in the broker may have been written by anybody; the limits stay as they are."""
        guard.steering.follow(Orders(limits={"tokens": 5}))
        guard.tick()
        assert len(messages(caplog)) == 1
        guard.tick()
        assert guard.limits == LIMITS
        assert guard.last_observation is not None


class TestALongPause:
    def test_it_alarms_once_as_an_error(self, make: Make, readings: Readings, caplog: pytest.LogCaptureFixture) -> None:
        """Somebody has to look: nothing will run before that, whatever the worker waits for."""
        guard = make(alarm_s=60)
        look(guard, readings, (0, 270), (59, 270), (60, 270), (61, 280), (600, 280))
        errors = [text for level, text in messages(caplog) if level == logging.ERROR]
        assert [text.partition(": ")[0] for text in errors] == [
            "has taken no new tasks for 60 s and still does not",
        ]
        assert guard.counts["alarms"] == 1

    def test_the_next_pause_may_alarm_again(self, make: Make, readings: Readings) -> None:
        guard = make(alarm_s=60)
        look(guard, readings, (0, 270), (60, 270), (70, 100), (80, 270), (130, 270))
        assert guard.counts["alarms"] == 1
        look(guard, readings, (140, 270))
        assert guard.counts["alarms"] == 2


def test_a_sensor_error_survives_pickling() -> None:
    """Its facts arrive with it."""
    error = pickle.loads(pickle.dumps(SensorError("memory", "no file")))
    assert (type(error), error.quantity, error.reason) == (SensorError, "memory", "no file")
    assert str(error) == "memory can't be read: no file"
