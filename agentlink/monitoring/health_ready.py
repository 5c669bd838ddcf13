"""Whether the system takes calls and runs them, as one that sends it work wants to know; asked over HTTP.

The other question, whether a process lives, is answered by each for itself: see `health`.
"""

from __future__ import annotations

import redis
from kombu.exceptions import OperationalError

from agentlink.broker import server
from agentlink.broker.lease import LEASES_KEY
from agentlink.broker.publishing import FULL_FRACTION
from agentlink.errors import AgentLinkError
from agentlink.monitoring.health import Verdict
from agentlink.settings import load
from tasks import app


def server_lives() -> Verdict:
    """Whether the process that is asked lives: it answers. What else is wrong, its restart would not help."""
    return Verdict(True, ["this server answers"])


def system_ready() -> Verdict:
    """Whether the broker takes calls, and there is a worker, on whichever host, to run them.

    A guard that has paused its worker makes nothing unready: calls are taken and wait.
    """
    settings = load()
    if settings.embedded and not server.is_running(settings):  # the client would wait for it for long
        return Verdict(False, [f"the broker at {settings.shown_url} does not answer"])
    try:
        return _of_broker(app.backend.client)
    except (redis.RedisError, OperationalError, OSError, AgentLinkError) as error:
        return Verdict(False, [f"the broker at {settings.shown_url} does not answer: {error}"])


def _of_broker(client: redis.Redis) -> Verdict:
    with client.pipeline(transaction=False) as pipe:
        pipe.info("memory")
        pipe.info("replication")
        pipe.time()
        pipe.zrange(LEASES_KEY, 0, -1, withscores=True)
        memory, replication, (seconds, microseconds), leases = pipe.execute()
    now_ms = seconds * 1000 + microseconds / 1000
    workers = sum(ends_at_ms > now_ms for _, ends_at_ms in leases)
    wrong: list[str] = []
    if memory["maxmemory"] and memory["used_memory"] >= FULL_FRACTION * memory["maxmemory"]:
        wrong.append(f"the broker is full: it uses {memory['used_memory'] / memory['maxmemory']:.0%} of its memory")
    if replication["role"] != "master":
        wrong.append("the broker takes no calls: it is a replica")
    if not workers:
        wrong.append("no worker is connected to the broker")
    return Verdict(not wrong, wrong or ["the broker takes calls", f"workers connected: {workers}"])
