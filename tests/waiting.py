"""Waiting for things in tests: poll with a deadline, and say what was awaited when it does not come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(ready: Callable[[], T], *, what: str, timeout_s: float = 10) -> T:
    """Poll `ready()` until it is truthy and return that; else fail, saying what was awaited."""
    deadline = time.monotonic() + timeout_s
    while not (value := ready()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain for {what}")
        time.sleep(0.01)
    return value
