"""The valve: who turns it, and what it keeps."""

from __future__ import annotations

import threading

from resource_guard import Valve


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


def test_what_holds_a_closed_valve_may_change_and_the_time_does_not() -> None:
    times = iter([1.0, 2.0])
    valve = Valve(clock=lambda: next(times))
    valve.explain("nobody has closed it")
    assert valve.reason == ""
    valve.pause("memory")
    valve.explain("disk")
    assert (valve.is_open, valve.reason, valve.since) == (False, "disk", 2.0)


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
