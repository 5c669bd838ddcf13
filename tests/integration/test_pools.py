"""Leases with the pools that are no processes."""

from __future__ import annotations

import time

import pytest
from celery import group

from tests.integration import sample
from tests.integration.system import System
from tests.waiting import wait_until


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_tasks_follow_each_other_without_a_pause(system: System, pool: str) -> None:
    """A thread that has finished wakes the loop, which else would sleep for a quarter of a second and more."""
    system.start_worker(pool=pool)
    sample.add.delay(1, 1).get(timeout=20)
    begun = time.monotonic()
    results = group(sample.add.s(number, 1) for number in range(100)).delay()
    assert results.get(timeout=20) == list(range(1, 101))
    assert time.monotonic() - begun < 5
    wait_until(lambda: system.in_flight() == 0, what="the last acknowledgements")


def test_a_broker_that_fills_warns_before_it_refuses(system: System, caplog: pytest.LogCaptureFixture) -> None:
    sample.add.delay(1, 1)
    system.client.set("ballast", "x" * 20_000_000, ex=60)
    used: int = system.client.info("memory")["used_memory"]
    system.client.config_set("maxmemory", int(used / 0.87))
    try:
        wait_until(lambda: sample.add.delay(1, 1) and "the broker uses" in caplog.text, what="a warning")
    finally:
        system.client.config_set("maxmemory", system.settings.broker_memory_bytes)
    assert "% of its memory; above 95 % it takes no new calls" in caplog.text
