"""How sweeping reaches a Celery worker. Callers import this too, and none of the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import redis
from celery import Celery

from agentlink.broker import chores
from agentlink.broker.chores import Chore
from agentlink.settings import load

#: Tells, of some runs, those that are known, and whether each of them goes on. Whoever keeps runs adds to `lookups`.
Lookup = Callable[[redis.Redis, Sequence[str]], Mapping[str, bool]]
lookups: list[Lookup] = []


def install(app: Celery) -> None:
    """Have every worker of `app` sweep. Doing it twice changes nothing."""
    chores.add(app, _sweeper, slow=True)


def _sweeper(app: Celery) -> Chore:
    # Here, before there are processes: they share what it imports, and none is made while a thread imports it.
    from agentlink.broker.sweeping import Sweeper

    sweeper = Sweeper(load(), lambda: app.backend.client, lookups)

    def sweep() -> float:
        sweeper.sweep_in_turn()
        return sweeper.every_s

    return Chore(name="sweeping", first_in_s=sweeper.every_s, do=sweep)
