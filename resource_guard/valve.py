"""The flag between the guard, which turns it, and whoever takes messages, who asks it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Position:
    """Open or closed, why, and since when (seconds since the epoch, so that it can be shown to people)."""

    is_open: bool
    reason: str
    since: float


class Valve:
    """Open: work may be taken. Safe to turn and to ask from any thread; asking takes no lock."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # Replaced as a whole, so a reader never sees a new state with an old reason.
        self._position = Position(is_open=True, reason="", since=clock())

    @property
    def position(self) -> Position:
        """State, reason and time, as they belong together."""
        return self._position

    @property
    def is_open(self) -> bool:
        """Whether work may be taken."""
        return self._position.is_open

    @property
    def reason(self) -> str:
        """Why it was last turned; empty if it never was."""
        return self._position.reason

    @property
    def since(self) -> float:
        """When it was last turned."""
        return self._position.since

    def pause(self, reason: str) -> bool:
        """Close it; False if it was closed, and then nothing changes."""
        return self._turn(is_open=False, reason=reason)

    def resume(self, reason: str) -> bool:
        """Open it; False if it was open, and then nothing changes."""
        return self._turn(is_open=True, reason=reason)

    def explain(self, reason: str) -> None:
        """While it is closed: what holds it now may differ from what closed it."""
        with self._lock:
            if not self._position.is_open and reason != self._position.reason:
                self._position = replace(self._position, reason=reason)

    def _turn(self, *, is_open: bool, reason: str) -> bool:
        with self._lock:
            if self._position.is_open == is_open:
                return False
            self._position = Position(is_open=is_open, reason=reason, since=self._clock())
            return True
