"""When workers took no tasks while a run went on: told apart, in its timeline, from waiting for room."""

from __future__ import annotations

import time

from redis import Redis

from agentlink.monitoring import history
from workflows.states import TERMINAL_RUN_STATES
from workflows.store import RunRecord

_LOOK_EVERY_S = 5.0


class Pauses:
    """Those of one run."""

    def __init__(self) -> None:
        self._look_at = 0.0
        self._said: list[list[float]] = []

    def look(self, client: Redis, run: RunRecord) -> list[list[float]] | None:
        """The beginnings and ends of all pauses, if they are other than those told before."""
        if time.monotonic() < self._look_at:
            return None
        ended = run.state in TERMINAL_RUN_STATES
        # What an ended run has met changes no more, but it may be resumed, and the last row is written a second later.
        self._look_at = time.monotonic() + _LOOK_EVERY_S * (12 if ended else 1)
        found = pauses_between(client, run.called_at, run.ended_at if ended else None)
        if found == self._said:
            return None
        self._said = found
        return found


def pauses_between(client: Redis, since: float, until: float | None) -> list[list[float]]:
    """The beginnings and ends of the times in which a worker was paused, as finely as it is known."""
    series = history.read(client, [history.PAUSED_FRACTION], since, until)[history.PAUSED_FRACTION]
    bands: list[list[float]] = []
    for at, fraction in zip(series.times, series.values, strict=True):
        if not fraction:
            continue
        if bands and bands[-1][1] >= at:
            bands[-1][1] = at + series.step_s
        else:
            bands.append([at, at + series.step_s])
    return bands
