"""Messages whose task killed its process, or its worker, once too often: kept with the reason, sent again on request.

A letter is kept whole, as it was taken from its queue. Sending it again begins its attempts anew; what the run store
has to say to that (the run goes on) is in `reopeners`.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import redis
from kombu.utils.json import dumps, loads

from agentlink.broker.lease import WAKE_PREFIX
from agentlink.broker.transport import DELIVERIES_HEADER, Channel, Command

LETTERS_KEY = "agentlink:dead"
INDEX_KEY = "agentlink:dead:index"
#: The most letters kept, and for how long; the oldest go first.
KEEP_LETTERS = 10_000
KEEP_S = 30 * 86400


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A message nobody tries any more. `buried_at` is in seconds since 1970."""

    id: str
    task: str
    queue: str
    reason: str
    attempts: int
    buried_at: float
    run_id: str | None
    arguments: str
    message: str


#: What turns a letter that is sent again into broker commands that run with it.
reopeners: list[Callable[[DeadLetter], Iterable[Command]]] = []


def bury(client: redis.Redis, message: Any, *, reason: str, attempts: int) -> DeadLetter:
    """Keep a kombu message, with why; the letters too old or too many go."""
    raw, now = message._raw, time.time()
    headers = raw["headers"]
    letter = DeadLetter(
        id=headers["id"],
        task=headers["task"],
        queue=raw["properties"]["delivery_info"]["routing_key"],
        reason=reason,
        attempts=attempts,
        buried_at=now,
        run_id=headers.get("agentlink_run"),
        arguments=f"{headers.get('argsrepr', '')} {headers.get('kwargsrepr', '')}",
        message=dumps(raw),
    )
    with client.pipeline() as pipe:
        pipe.hset(LETTERS_KEY, letter.id, json.dumps(asdict(letter)))
        pipe.zadd(INDEX_KEY, {letter.id: now})
        pipe.zrangebyscore(INDEX_KEY, "-inf", now - KEEP_S)
        pipe.zrange(INDEX_KEY, 0, -KEEP_LETTERS - 1)
        *_, too_old, too_many = pipe.execute()
    drop(client, [_text(letter_id) for letter_id in {*too_old, *too_many}])
    return letter


def count(client: redis.Redis) -> int:
    """How many letters there are."""
    return int(client.zcard(INDEX_KEY))


def find(client: redis.Redis, *, task: str | None = None, text: str | None = None) -> list[DeadLetter]:
    """The letters, newest first: all, or those of one task, or whose reason or arguments hold a text."""
    letters = [_decode(value) for value in client.hvals(LETTERS_KEY)]
    found = [
        letter
        for letter in letters
        if (task is None or letter.task == task or letter.task.rsplit(".", 1)[-1] == task)
        and (text is None or text in letter.reason or text in letter.arguments)
    ]
    return sorted(found, key=lambda letter: letter.buried_at, reverse=True)


def read(client: redis.Redis, letter_id: str) -> DeadLetter | None:
    """One letter by its task's id, or None."""
    value = client.hget(LETTERS_KEY, letter_id)
    return None if value is None else _decode(value)


def send_again(client: redis.Redis, letters: Iterable[DeadLetter]) -> int:
    """Queue letters again, their attempts begun anew; return how many. Each goes once, whoever asks."""
    sent = 0
    for letter in letters:
        if not client.zrem(INDEX_KEY, letter.id):
            continue  # somebody else has just done it
        payload = loads(letter.message)
        payload["headers"].pop(DELIVERIES_HEADER, None)
        payload["properties"]["delivery_tag"] = str(uuid.uuid4())
        priority = int(payload["properties"].get("priority") or 0)
        key = f"{letter.queue}{Channel.sep}{priority}" if priority else letter.queue
        with client.pipeline() as pipe:
            for command in (command for reopen in reopeners for command in reopen(letter)):
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]
            pipe.lpush(key, dumps(payload))
            pipe.hdel(LETTERS_KEY, letter.id)
            pipe.publish(WAKE_PREFIX + letter.queue, "")
            pipe.execute()
        sent += 1
    return sent


def drop(client: redis.Redis, letter_ids: Iterable[str]) -> int:
    """Forget letters; return how many there were."""
    ids = list(letter_ids)
    if not ids:
        return 0
    with client.pipeline() as pipe:
        pipe.hdel(LETTERS_KEY, *ids)
        pipe.zrem(INDEX_KEY, *ids)
        return int(pipe.execute()[0])


def _decode(value: bytes | str) -> DeadLetter:
    return DeadLetter(**json.loads(value))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
