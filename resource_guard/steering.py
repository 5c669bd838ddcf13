"""What a person has asked of a running guard: a pause, other limits. The broker keeps it for workers to come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from resource_guard.limits import Limits


@dataclass(frozen=True, kw_only=True)
class Orders:
    """All that is asked for; `until` and what follows are seconds since 1970."""

    paused: bool = False
    reason: str = ""
    #: When the pause ends by itself.
    until: float | None = None
    #: Other limits than the settings say, by resource.
    limits: Mapping[str, float] = field(default_factory=dict)


class Steering:
    """The orders as they stand. They may be given in any thread; the guard's follows them at its next look."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._orders = Orders()
        self._configured: Limits | None = None
        self._applied: Mapping[str, float] = {}

    @property
    def orders(self) -> Orders:
        """As they stand."""
        return self._orders

    def follow(self, orders: Orders) -> None:
        """From the next look on."""
        self._orders = orders

    def pause_reason(self) -> str:
        """Why nothing may start since a person has said so; empty if nobody has, or its time is over."""
        orders = self._orders
        if not orders.paused or (orders.until is not None and self._clock() >= orders.until):
            return ""
        return f"paused by hand{f': {orders.reason}' if orders.reason else ''}"

    def limits_from(self, limits: Limits) -> Limits:
        """The limits that hold now: the settings' own, changed as asked for."""
        with self._lock:
            if self._configured is None:
                self._configured = limits
            wanted = self._orders.limits
            if wanted == self._applied:
                return limits
            self._applied = wanted
            return self._configured.with_changes(wanted)
