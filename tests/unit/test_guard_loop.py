"""The guard's loop and its valve: what they do, say, survive, and how they start and stop."""

from __future__ import annotations

import json
import logging
import pickle
import threading

import pytest

from resource_guard import Guard, Limits, Observation, SensorError, Valve
from tests.waiting import wait_until

MB = 1_000_000
LIMITS = Limits(memory_bytes=300 * MB, soft_fraction=0.85, resume_fraction=0.75, rest_s=1.0)


class Readings:
    """A sensor that gives what it is told to, and the clock that goes with it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.tree_mb = 100
        self.error: Exception | None = None
        self.asked = 0

    def observe(self, at: float) -> Observation:
        self.asked += 1
        if self.error:
            raise self.error
        return Observation(at=at, tree_bytes=self.tree_mb * MB, available_bytes=4000 * MB)


@pytest.fixture
def readings() -> Readings:
    return Readings()


@pytest.fixture
def guard(readings: Readings) -> Guard:
    return Guard(LIMITS, readings, Valve(clock=lambda: 1234.5), clock=lambda: readings.now, interval_s=0.001)


def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records]


def test_pressure_closes_the_valve_and_its_end_opens_it(guard: Guard, readings: Readings) -> None:
    """Sense, decide, act: one look is enough to close, and after the rest one look is enough to open."""
    guard.tick()
    assert guard.valve.is_open
    readings.tree_mb = 310
    guard.tick()
    assert not guard.valve.is_open
    readings.tree_mb, readings.now = 100, 2.0
    guard.tick()
    assert guard.valve.is_open


def test_only_a_change_is_logged_with_value_and_limit(
    guard: Guard, readings: Readings, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten looks a second must not make ten lines a second."""
    with caplog.at_level(logging.INFO):
        for readings.now, readings.tree_mb in [(0, 100), (1, 310), (2, 320), (3.5, 240), (5, 200), (6, 200)]:
            guard.tick()
    assert messages(caplog) == [
        (
            logging.WARNING,
            (
                "takes no new tasks: memory of this worker's processes 310 MB is over the soft limit 255 MB "
                "(85% of 300 MB)"
            ),
        ),
        (
            logging.INFO,
            (
                "takes tasks again after 4.0 s: memory of this worker's processes 200 MB is below 225 MB "
                "(75% of 300 MB), memory available on this machine 4 GB"
            ),
        ),
    ]


def test_status_is_plain_data_that_says_what_holds_the_worker_now(guard: Guard, readings: Readings) -> None:
    """What `celery inspect guard` shows; it goes through JSON."""
    assert guard.status()["tree_bytes"] is None
    readings.tree_mb = 310
    guard.tick()
    readings.tree_mb, readings.now = 240, 5.0
    guard.tick()
    assert json.loads(json.dumps(guard.status())) == {
        "state": "paused",
        "reason": "memory of this worker's processes 240 MB is not yet below 225 MB (75% of 300 MB)",
        "since": 1234.5,
        "pressure": "ok",
        "tree_bytes": 240 * MB,
        "available_bytes": 4000 * MB,
        "limit_bytes": 300 * MB,
        "soft_bytes": 255 * MB,
        "resume_bytes": 225 * MB,
        "free_bytes": 0,
    }
    readings.tree_mb = 100
    guard.tick()
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
    readings.error, readings.tree_mb = None, 310
    guard.tick()
    assert not guard.valve.is_open


def test_a_failed_look_changes_nothing(guard: Guard, readings: Readings) -> None:
    """Paused stays paused: not knowing is no reason to take more work."""
    readings.tree_mb = 310
    guard.tick()
    before = guard.last_observation
    readings.error, readings.now = SensorError("memory", "no file"), 60.0
    guard.tick()
    assert not guard.valve.is_open
    assert guard.last_observation == before


def test_stop_without_start_and_twice_is_fine(guard: Guard) -> None:
    """Whoever cleans up need not know how far things had come."""
    guard.stop()
    guard.start()
    guard.stop()
    guard.stop()


def test_start_has_looked_once_when_it_returns(readings: Readings) -> None:
    """So a worker that starts under pressure doesn't take a first message."""
    readings.tree_mb = 310
    guard = Guard(LIMITS, readings, Valve(), clock=lambda: readings.now, interval_s=3600)
    guard.start()
    assert not guard.valve.is_open
    guard.stop()


def test_stop_returns_when_the_thread_has_ended(guard: Guard, readings: Readings) -> None:
    """After stop nothing is read any more; a start after it watches again."""
    for _ in range(2):
        guard.start()
        guard.start()
        assert [thread.name for thread in threading.enumerate()].count("resource-guard") == 1
        asked = readings.asked
        wait_until(lambda asked=asked: readings.asked > asked + 2, what="the guard to look again and again")  # type: ignore[misc]
        guard.stop()
        assert [thread.name for thread in threading.enumerate()].count("resource-guard") == 0


def test_a_running_guard_outlives_a_failing_sensor(guard: Guard, readings: Readings) -> None:
    """The thread goes on, and acts on the first reading that works."""
    readings.error = RuntimeError("bug")
    guard.start()
    try:
        wait_until(lambda: readings.asked > 3, what="the guard to go on asking")
        readings.tree_mb, readings.error = 310, None
        wait_until(lambda: not guard.valve.is_open, what="the pause")
    finally:
        guard.stop()


def test_a_guard_that_stops_leaves_the_valve_open(guard: Guard, readings: Readings) -> None:
    """Nobody would be left to open it."""
    readings.tree_mb = 310
    guard.start()
    wait_until(lambda: not guard.valve.is_open, what="the pause")
    guard.stop()
    assert guard.valve.is_open


def test_a_valve_keeps_why_and_when_it_was_turned() -> None:
    """Turning it to where it is changes nothing, so the first reason stands."""
    times = iter([1.0, 2.0, 3.0])
    valve = Valve(clock=lambda: next(times))
    assert (valve.is_open, valve.reason, valve.since) == (True, "", 1.0)
    assert valve.pause("too much")
    assert not valve.pause("still too much")
    assert (valve.is_open, valve.reason, valve.since) == (False, "too much", 2.0)
    assert valve.resume("enough")
    assert not valve.resume("more than enough")
    assert (valve.is_open, valve.reason, valve.since) == (True, "enough", 3.0)


def test_of_many_threads_that_turn_a_valve_one_succeeds() -> None:
    """The one that is told so may log it."""
    valve, together = Valve(), threading.Barrier(8)
    turned: list[bool] = []

    def turn() -> None:
        together.wait()
        turned.append(valve.pause("x"))

    threads = [threading.Thread(target=turn) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(turned) == [False] * 7 + [True]


def test_a_sensor_error_survives_pickling() -> None:
    """Its facts arrive with it."""
    error = pickle.loads(pickle.dumps(SensorError("memory", "no file")))
    assert (type(error), error.quantity, error.reason) == (SensorError, "memory", "no file")
    assert str(error) == "memory can't be read: no file"
