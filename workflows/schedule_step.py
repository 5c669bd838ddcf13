"""How schedules reach a Celery worker."""

from __future__ import annotations

from celery import Celery

from agentlink.broker import chores
from agentlink.broker.chores import Chore
from workflows.firing import Firer


def install(app: Celery) -> None:
    """Have every worker of `app` fire schedules. Doing it twice changes nothing."""
    chores.add(app, _firer)


def _firer(app: Celery) -> Chore:
    # Here, before there are processes: what sending a message imports, so that none is made while a thread does.
    import celery.app.events  # noqa: F401

    return Chore(name="firing schedules", first_in_s=0.0, do=Firer(lambda: app.backend.client).look)
