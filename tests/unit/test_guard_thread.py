"""The guard's thread: how it starts and stops, and when it looks."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

import pytest

from resource_guard import Guard
from resource_guard.guard import NICE
from tests.unit.made_guard import Crew, Make, Readings
from tests.waiting import wait_until


class LateEvent(threading.Event):
    """Wakes its waiters so much later than they asked for, once."""

    late_s = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        late_s, self.late_s = self.late_s, 0.0
        return super().wait((timeout or 0.0) + late_s)


def test_stop_without_start_and_twice_is_fine(guard: Guard) -> None:
    """Whoever cleans up need not know how far things had come."""
    guard.stop()
    guard.start()
    guard.stop()
    guard.stop()


def test_start_has_looked_once_when_it_returns(make: Make, readings: Readings) -> None:
    """So a worker that starts under pressure doesn't take a first message."""
    readings.memory_mb = 270
    guard = make(interval_s=3600)
    guard.start()
    assert not guard.valve.is_open
    guard.stop()


def test_stop_returns_when_the_thread_has_ended(guard: Guard, readings: Readings) -> None:
    """After stop nothing is read any more, and no file is open; a start after it watches again."""
    for round_ in range(2):
        guard.start()
        guard.start()
        assert [thread.name for thread in threading.enumerate()].count("resource-guard") == 1
        asked = readings.asked
        wait_until(lambda asked=asked: readings.asked > asked + 2, what="the guard to look again and again")  # type: ignore[misc]
        assert readings.closed == round_
        guard.stop()
        assert [thread.name for thread in threading.enumerate()].count("resource-guard") == 0
        assert readings.closed == round_ + 1


def test_a_running_guard_outlives_a_failing_sensor(guard: Guard, readings: Readings) -> None:
    """The thread goes on, and acts on the first reading that works."""
    readings.error = RuntimeError("bug")
    guard.start()
    try:
        wait_until(lambda: readings.asked > 3, what="the guard to go on asking")
        readings.memory_mb, readings.error = 270, None
        wait_until(lambda: not guard.valve.is_open, what="the pause")
    finally:
        guard.stop()


def test_a_guard_that_stops_leaves_the_valve_open(guard: Guard, readings: Readings) -> None:
    """Nobody would be left to open it."""
    readings.memory_mb = 270
    guard.start()
    wait_until(lambda: not guard.valve.is_open, what="the pause")
    guard.stop()
    assert guard.valve.is_open


def test_its_crew_says_when_to_look_again(make: Make, readings: Readings) -> None:
    """Sooner the less room there is, later while nothing runs."""
    crew = Crew()
    guard = make(crew=crew, interval_s=0.001)
    guard.start()
    try:
        wait_until(lambda: readings.asked > 3, what="looks at the short interval")
        crew.next_s = 3600
        wait_until(lambda: _stands_still(lambda: readings.asked), what="the long interval")
    finally:
        guard.stop()


def _stands_still(count: Callable[[], int]) -> bool:
    before = count()
    time.sleep(0.05)
    return count() == before


def test_looks_that_come_late_are_measured(guard: Guard) -> None:
    """A machine so loaded that the guard comes late is one on which nothing may be concluded from its silence."""
    late = LateEvent()
    late.late_s = 0.05
    guard._stopping = late
    guard.start()
    try:
        wait_until(lambda: guard.latest_s >= 0.05, what="the late look")
        wait_until(lambda: guard.late_s < 0.05, what="one in time")
        assert guard.status()["latest_s"] == guard.latest_s
    finally:
        guard.stop()


def test_a_look_that_is_far_off_comes_sooner_when_something_runs_again(make: Make, readings: Readings) -> None:
    crew = Crew()
    crew.next_s = 3600
    guard = make(crew=crew)
    guard.start()
    try:
        asked, crew.next_s = readings.asked, 0.001
        guard.wake()
        wait_until(lambda: readings.asked > asked, what="a look")
    finally:
        guard.stop()


def test_it_stops_at_once_however_far_off_its_next_look_is(make: Make) -> None:
    crew = Crew()
    crew.next_s = 3600
    guard = make(crew=crew)
    guard.start()
    guard.stop()


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="needs the right to come first")
def test_it_comes_before_all_others(guard: Guard) -> None:
    guard.start()
    try:
        thread = next(thread for thread in threading.enumerate() if thread.name == "resource-guard")
        assert thread.native_id is not None
        wait_until(lambda: os.getpriority(os.PRIO_PROCESS, thread.native_id or 0) == NICE, what="its precedence")
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) != NICE
    finally:
        guard.stop()
