"""Limits by key, in the broker: how many messages of a key workers may have at once, and how often one may be taken.

A message of a limited task begins with a mark that says which key it has and what that allows. The scripts in which
workers take messages, and are done with them, do the rest: what gets no place is never handed to a worker but set apart
in the same step, and the next of its key is handed out by the step in which a place becomes free. So what waits takes
neither a process nor a place in a worker's hand; and a place is held by a message in flight, so it is free in the step
in which that is acknowledged, given back, or taken from a dead worker.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import redis

#: The message property that carries a message's limit.
LIMIT = "agentlink_limit"
LIMIT_PREFIX = "agentlink:limit:"
LIMITED_PREFIX = "agentlink:limited:"
PLACES_PREFIX = "agentlink:places:"
#: The queues in which messages wait for a place.
QUEUES_KEY = "agentlink:limited"

# So that a mark is found among the first bytes of a message, whatever is in it.
_KEY_MAX, _ID_MAX = 200, 100
_MARK_MAX_BYTES = 4096
_NAMES = {"LIMIT": LIMIT_PREFIX, "LIMITED": LIMITED_PREFIX, "PLACES": PLACES_PREFIX, "QUEUES": QUEUES_KEY}
_SCRIPT = resources.files(__package__).joinpath("scripts", "limits.lua").read_text("utf-8")
_MARK_MAX = f"local MARK_MAX = {_MARK_MAX_BYTES}\n"


def lua(**names: str) -> str:
    """What stands before the scripts that take messages or end with them, with these names of the lease's."""
    return "".join(f"local {name} = '{value}'\n" for name, value in (_NAMES | names).items()) + _MARK_MAX + _SCRIPT


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What holds for one message."""

    key: str
    #: How many of the key workers may have at once; 0: any number.
    most: int = 0
    #: The time between two of the key, in microseconds; 0: none.
    interval_us: int = 0
    #: How much earlier than that one may come, while the mean is kept: timers are not exact.
    ahead_us: int = 0

    def marked(self, message: str, task_id: str, priority: int) -> str:
        """The message's JSON with the mark at its beginning: every reader of it skips what it does not know.

        The scripts find the mark's end by its closing quote: JSON has no other there that stands without a backslash.
        """
        name = json.dumps(self.key)[1:-1]
        if len(name) > _KEY_MAX:
            digest = hashlib.sha256(name.encode()).hexdigest()[:32]
            name = json.dumps(f"{self.key[:50]}…{digest}")[1:-1]
        mark = f"{self.most} {self.interval_us} {self.ahead_us} {priority} {name}"
        return f'{{"agentlink_limits": "{mark}", "agentlink_id": {json.dumps(task_id[:_ID_MAX])}, {message[1:]}'


def waiting(client: redis.Redis) -> list[dict[str, Any]]:
    """The keys of which messages wait, most of them first: queue, key, how many wait, how many workers have."""
    found: list[dict[str, Any]] = []
    for queue in sorted(_text(queue) for queue in client.smembers(QUEUES_KEY)):
        names = _names(client, queue)
        with client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.zcard(f"{LIMITED_PREFIX}{queue}\1{name}")
                pipe.scard(f"{LIMIT_PREFIX}{name}:held")
            counts = pipe.execute()
        for name, waits, held in zip(names, counts[::2], counts[1::2], strict=True):
            found.append({"queue": queue, "key": json.loads(f'"{name}"'), "waiting": waits, "held": held})
    return sorted(found, key=lambda one: -one["waiting"])


def waiting_in(client: redis.Redis, queue: str) -> int:
    """How many messages of a queue wait for a place."""
    with client.pipeline(transaction=False) as pipe:
        for name in _names(client, queue):
            pipe.zcard(f"{LIMITED_PREFIX}{queue}\1{name}")
        return sum(pipe.execute())


def _names(client: redis.Redis, queue: str) -> list[str]:
    """The keys, as they are in JSON, of which messages wait in a queue."""
    names: list[bytes | str] = client.zrange(LIMITED_PREFIX + queue, 0, -1)  # type: ignore[assignment]  # no scores asked for
    return [_text(name) for name in names]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
