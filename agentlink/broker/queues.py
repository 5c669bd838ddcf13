"""How much there is in the broker: waiting and since when, waiting for its time, in flight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

import redis

from agentlink.broker import limits
from agentlink.broker.lease import DELAYED_PREFIX, IN_FLIGHT_PREFIX, LEASES_KEY
from agentlink.broker.transport import Channel

_OLDEST = resources.files(__package__).joinpath("scripts", "oldest.lua").read_text("utf-8")
# Of more runs that wait in a list the others are about as old.
_RUNS_LOOKED_AT = 50


def lengths(client: redis.Redis, queues: Iterable[str]) -> list[dict[str, Any]]:
    """One entry a queue: its name, how many messages wait in it, for their time, for a place of their key."""
    names = list(queues)
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            for key in keys(name):
                pipe.llen(key)
            pipe.zcard(DELAYED_PREFIX + name)
        answers = pipe.execute()
    each = len(answers) // len(names) if names else 0
    found = []
    for number, name in enumerate(names):
        *waiting, delayed = answers[number * each : (number + 1) * each]
        limited = limits.waiting_in(client, name)
        found.append({"name": name, "waiting": sum(waiting), "delayed": delayed, "limited": limited})
    return found


def waiting_since(client: redis.Redis, queues: Sequence[str]) -> dict[str, float]:
    """When the oldest message that waits in each queue was queued, by the broker's clock; without those that are empty.

    Looked at is what comes next in each of a queue's lists.
    """
    lists = [(name, key) for name in queues for key in keys(name)]
    told: list[bytes] = client.eval(_OLDEST, len(lists), *(key for _, key in lists), _RUNS_LOOKED_AT)
    since: dict[str, float] = {}
    for (name, _), at in zip(lists, told, strict=True):
        if at:
            since[name] = min(float(at), since.get(name, float(at)))
    return since


def keys(queue: str) -> list[str]:
    """The lists of a queue: for each priority one, and one for runs."""
    return [f"{queue}{Channel.sep}{priority}" if priority else queue for priority in Channel.priority_steps]


def in_flight(client: redis.Redis) -> int:
    """How many messages workers have taken and not yet acknowledged."""
    workers: list[bytes] = client.zrange(LEASES_KEY, 0, -1)  # type: ignore[assignment]  # no scores asked for
    return sum(int(client.hlen(IN_FLIGHT_PREFIX + worker.decode())) for worker in workers)
