"""What a person asks of a running guard."""

from __future__ import annotations

import pytest

from resource_guard.limits import Limits
from resource_guard.steering import Orders, Steering

LIMITS = Limits(memory_bytes=1_000_000_000)


@pytest.mark.parametrize(
    ("orders", "reason"),
    [
        (Orders(), ""),
        (Orders(paused=True), "paused by hand"),
        (Orders(paused=True, reason="for lunch"), "paused by hand: for lunch"),
        (Orders(paused=True, until=100.1), "paused by hand"),
        (Orders(paused=True, until=100.0), ""),
        (Orders(reason="of a pause that is over"), ""),
    ],
)
def test_a_pause_lasts_until_it_is_taken_back_or_its_time_is_over(orders: Orders, reason: str) -> None:
    steering = Steering(clock=lambda: 100.0)
    steering.follow(orders)
    assert steering.pause_reason() == reason


def test_without_orders_the_limits_are_those_of_the_settings() -> None:
    assert Steering().limits_from(LIMITS) is LIMITS


def test_each_order_changes_the_limits_of_the_settings_and_not_those_of_the_order_before() -> None:
    steering = Steering()
    now = steering.limits_from(LIMITS)
    steering.follow(Orders(limits={"memory": 2e9, "cpu": 0.5}))
    now = steering.limits_from(now)
    assert (now.memory_bytes, now.cpu_fraction) == (2_000_000_000, 0.5)
    assert steering.limits_from(now) is now
    steering.follow(Orders(limits={"memory": 3e9}))
    now = steering.limits_from(now)
    assert (now.memory_bytes, now.cpu_fraction) == (3_000_000_000, LIMITS.cpu_fraction)
    steering.follow(Orders())
    assert steering.limits_from(now) == LIMITS


def test_orders_that_make_no_sense_are_refused_once_and_change_nothing() -> None:
    """They come from the broker, where anybody may have written them; a limit that held goes on to hold."""
    steering = Steering()
    now = steering.limits_from(LIMITS)
    steering.follow(Orders(limits={"memory": -1}))
    with pytest.raises(ValueError, match="memory_bytes must be above 0"):
        steering.limits_from(now)
    assert steering.limits_from(now) is now
