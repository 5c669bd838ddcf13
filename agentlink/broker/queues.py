"""How much there is in the broker: waiting, waiting for its time, in flight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import redis

from agentlink.broker import limits
from agentlink.broker.lease import DELAYED_PREFIX, IN_FLIGHT_PREFIX, LEASES_KEY
from agentlink.broker.transport import Channel


def lengths(client: redis.Redis, queues: Iterable[str]) -> list[dict[str, Any]]:
    """One entry a queue: its name, how many messages wait in it, for their time, for a place of their key."""
    return [
        {
            "name": name,
            "waiting": sum(client.llen(key) for key in keys(name)),
            "delayed": client.zcard(DELAYED_PREFIX + name),
            "limited": limits.waiting_in(client, name),
        }
        for name in queues
    ]


def keys(queue: str) -> list[str]:
    """The lists of a queue: for each priority one, and one for runs."""
    return [f"{queue}{Channel.sep}{priority}" if priority else queue for priority in Channel.priority_steps]


def in_flight(client: redis.Redis) -> int:
    """How many messages workers have taken and not yet acknowledged."""
    workers: list[bytes] = client.zrange(LEASES_KEY, 0, -1)  # type: ignore[assignment]  # no scores asked for
    return sum(int(client.hlen(IN_FLIGHT_PREFIX + worker.decode())) for worker in workers)
