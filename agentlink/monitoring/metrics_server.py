"""A worker's own port for Prometheus, where a setting asks for one: `http://127.0.0.1:PORT/metrics`.

What it answers is of all workers, not of its own alone. Of those on one machine that are to have the same port the
first has it, and another when that has ended.
"""

from __future__ import annotations

import logging

from celery import Celery

from agentlink.broker import chores
from agentlink.broker.chores import Chore
from agentlink.settings import load

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 5.0


def install(app: Celery) -> None:
    """Have every worker of `app` serve metrics, where the settings say so. Doing it twice changes nothing."""
    if load().metrics_port is not None:
        chores.add(app, _server, slow=True)


def _server(_: Celery) -> Chore:
    # Here, before there are processes: they share what it imports, and none is made while a thread imports it.
    from prometheus_client import start_http_server

    from agentlink.monitoring.metrics import registry

    settings, serves = load(), False

    def serve() -> float:
        nonlocal serves
        if not serves:
            try:
                server, _ = start_http_server(settings.metrics_port or 0, settings.metrics_address, registry())
            except OSError as error:
                logger.debug("metrics: %s", error)  # mostly it is another worker that serves them
                return _LOOK_EVERY_S
            serves = True
            host = f"[{settings.metrics_address}]" if ":" in settings.metrics_address else settings.metrics_address
            logger.info("metrics are at http://%s:%s/metrics", host, server.server_port)
        return 3600.0

    return Chore(name="serving metrics", first_in_s=0.0, do=serve)
