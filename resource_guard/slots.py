"""How many tasks run at a time: fewer while a resource is tight, more again when it is not. Plain data, no clock."""

from __future__ import annotations

#: One task more or fewer this often: what the last change did has to be seen before the next.
STEP_S = 1.0


class Slots:
    """Between one and `most`; `now` moves by one every `STEP_S` at most."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.now = most
        self._changed_at = float("-inf")

    def adapt(self, *, tight: bool, running: int, least: int, at: float) -> int:
        """How many from now on: while `tight` one fewer than run now, down to `least`; else one more."""
        if at < self._changed_at + STEP_S:
            return self.now
        least = max(1, min(least, self.most))
        wanted = max(least, min(self.now, running) - 1) if tight else min(self.most, self.now + 1)
        if wanted != self.now and not (tight and wanted > self.now):
            self.now, self._changed_at = wanted, at
        return self.now
