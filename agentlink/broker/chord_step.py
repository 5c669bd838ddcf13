"""How the watch over chords reaches a Celery worker. One looks at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence

from celery import Celery

from agentlink.broker import chores, sweep_step
from agentlink.broker.chords import QUIET_S, ChordWatch
from agentlink.broker.chores import Chore

_TURN_KEY = "agentlink:chords:turn"


def install(app: Celery) -> None:
    """Have every worker of `app` watch. Doing it twice changes nothing."""
    chores.add(app, _watch)


def _watch(app: Celery) -> Chore:
    def look() -> float:
        # Not quite so long: whoever comes next is due.
        if app.backend.client.set(_TURN_KEY, "", nx=True, px=int(QUIET_S * 900)):
            ChordWatch(app.backend, lambda run_ids: _goes_on(app, run_ids)).look(time.time())
        return QUIET_S

    return Chore(name="looking after chords", first_in_s=QUIET_S, do=look)


def _goes_on(app: Celery, run_ids: Sequence[str]) -> dict[str, bool]:
    known: dict[str, bool] = {}
    for lookup in sweep_step.lookups:
        known |= lookup(app.backend.client, run_ids)
    return known
