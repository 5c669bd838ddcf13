"""How each worker is, in the broker: told by itself once a second, forgotten when it is silent.

So nobody has to ask workers, who may be busy, and a dead one is gone within seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import redis
from redis.client import Pipeline

WORKER_PREFIX = "agentlink:worker:"
#: The workers' names, by when they last told how they are (seconds since 1970, their clock).
WORKERS_KEY = "agentlink:workers"
#: What workers have counted, all together and ever: see `COUNTS`.
COUNTS_KEY = "agentlink:counts"
#: Tasks by what became of them (one that is tried again is `retried`, and in the end something else), evictions and
#: pauses of the guard, and milliseconds in them.
COUNTS = ("succeeded", "failed", "retried", "revoked", "evictions", "pauses", "paused_ms")

#: A worker that has told nothing for so long is gone.
SILENT_S = 5
_KEEP_COUNTS_S = 90 * 86400


def tell(pipe: Pipeline, name: str, status: Mapping[str, Any], counted: Mapping[str, int]) -> None:
    """Keep how a worker is, and what it has counted since it last did."""
    at = status["at"]
    pipe.set(WORKER_PREFIX + name, json.dumps(status), ex=SILENT_S)
    pipe.zadd(WORKERS_KEY, {name: at})
    pipe.zremrangebyscore(WORKERS_KEY, "-inf", at - 3600)
    pipe.expire(WORKERS_KEY, 3600)
    count(pipe, counted)


def count(client: redis.Redis, counted: Mapping[str, int]) -> None:
    """Add to what was counted."""
    for what, number in counted.items():
        client.hincrby(COUNTS_KEY, what, number)
    if counted:
        client.expire(COUNTS_KEY, _KEEP_COUNTS_S)


def gone(client: redis.Redis, name: str) -> None:
    """Forget a worker that has ended."""
    client.delete(WORKER_PREFIX + name)
    client.zrem(WORKERS_KEY, name)


def read(client: redis.Redis) -> dict[str, dict[str, Any]]:
    """How the workers are that live, by their names. What is told of each is in `status.status_of`."""
    names = [_text(name) for name in client.zrange(WORKERS_KEY, 0, -1)]  # type: ignore[arg-type]  # no scores asked for
    said = client.mget([WORKER_PREFIX + name for name in names]) if names else []
    return {name: json.loads(status) for name, status in zip(names, said, strict=True) if status}


def counts(client: redis.Redis) -> dict[str, int]:
    """What workers have counted, all together and ever."""
    said = {_text(name): int(number) for name, number in client.hgetall(COUNTS_KEY).items()}
    return {name: said.get(name, 0) for name in COUNTS}


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
