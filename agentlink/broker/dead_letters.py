"""Messages whose task killed its process, or its worker, once too often: kept with the reason, sent again on request.

A message is kept as it was in flight, apart from what a list of letters shows: ten thousand letters are listed without
reading their messages. Sending one again begins its attempts anew; where it is a step of a run, the run is resumed.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import redis
from kombu.utils.json import dumps, loads

from agentlink.broker import event_log
from agentlink.broker.arguments import ARGUMENTS_HEADER, WAITS_PREFIX, belong, held
from agentlink.broker.calls import DELIVERIES_HEADER
from agentlink.broker.errors import LetterAmbiguous, LetterUnknown
from agentlink.broker.lease import IN_FLIGHT_PREFIX, WAKE_PREFIX
from agentlink.broker.transport import Channel
from agentlink.settings import load

#: The letters' ids by the time they were buried, what is shown of each (JSON), and queue key, NUL, message.
INDEX_KEY = "agentlink:dead"
LETTERS_KEY = "agentlink:dead:letters"
MESSAGES_KEY = "agentlink:dead:messages"
#: The most letters kept, and for how long; the oldest go first.
KEEP_LETTERS = 10_000
KEEP_S = 30 * 86400

# A round trip brings this many; a reader who wants ten waits for no more.
_PAGE = 500
_SHORTEST_PREFIX = 8
_SIGNAL = re.compile(r"signal \d+ \((SIG[A-Z0-9+]+)\)")


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """What is known of a message nobody tries any more. `buried_at` is in seconds since 1970.

    `arguments` are as Celery shows them, cut where they are long; the message has them whole.
    """

    id: str
    task: str
    queue: str
    reason: str
    attempts: int
    buried_at: float
    run_id: str | None
    arguments: str
    #: The signal that killed the last process, as the reason tells it.
    signal: str | None = None
    #: Where the task was, if it could still tell.
    traceback: str | None = None


#: Each resumes the run of a letter that is sent again, with a new message in place of the letter's; False: it has none.
resumers: list[Callable[[redis.Redis, DeadLetter], bool]] = []


def bury(
    client: redis.Redis, message: Any, *, reason: str, attempts: int, traceback: str | None = None
) -> DeadLetter | None:
    """Keep a kombu message, with why; the letters too old or too many go.

    Done twice, it is one letter. None when another worker has the message by now: then it is not ours to bury.
    """
    flight = _flight(client, message)
    if flight is None:
        return None
    now, headers = time.time(), message.headers
    letter = DeadLetter(
        id=headers["id"],
        task=headers["task"],
        queue=flight.partition("\0")[0].partition(Channel.sep)[0],
        reason=reason,
        attempts=attempts,
        buried_at=now,
        run_id=headers.get("agentlink_run"),
        arguments=f"{headers.get('argsrepr') or ''} {headers.get('kwargsrepr') or ''}",
        signal=match[1] if (match := _SIGNAL.search(reason)) else None,
        traceback=traceback,
    )
    with client.pipeline() as pipe:
        pipe.hset(MESSAGES_KEY, letter.id, flight)
        pipe.hset(LETTERS_KEY, letter.id, json.dumps(asdict(letter)))
        pipe.zadd(INDEX_KEY, {letter.id: now})
        told = {"step_id": letter.id, "name": letter.task, "reason": reason, "attempts": attempts}
        event_log.tell(pipe, [("step-buried", {"run_id": letter.run_id, **told})])
        if digests := headers.get(ARGUMENTS_HEADER):
            for command in [*belong(digests, [_holder(letter.id)]), held(_holder(letter.id), KEEP_S)]:
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]
        for key in (INDEX_KEY, LETTERS_KEY, MESSAGES_KEY):
            pipe.expire(key, KEEP_S)  # with the youngest letter all of them are too old
        pipe.zrangebyscore(INDEX_KEY, "-inf", now - KEEP_S)
        pipe.zrange(INDEX_KEY, 0, -KEEP_LETTERS - 1)
        *_, too_old, too_many = pipe.execute()
    drop(client, {_text(letter_id) for letter_id in [*too_old, *too_many]})
    return letter


def _flight(client: redis.Redis, message: Any) -> str | None:
    """Queue key, NUL, message: as it is in flight, so that it goes back to where it was taken from."""
    worker, _, number = str(message.delivery_tag).rpartition("/")
    value = client.hget(IN_FLIGHT_PREFIX + worker, number)
    return None if value is None else _text(value)


def count(client: redis.Redis) -> int:
    """How many letters there are."""
    return int(client.zcount(INDEX_KEY, time.time() - KEEP_S, "+inf"))


def find(client: redis.Redis, *, task: str | None = None, text: str | None = None) -> Iterator[DeadLetter]:
    """The letters, newest first: all, or those of one task, or whose reason or arguments hold a text.

    `task` is a task's name, in full or its last part; upper and lower case of `text` are the same.
    """
    ids = _ids(client)
    for start in range(0, len(ids), _PAGE):
        for value in client.hmget(LETTERS_KEY, ids[start : start + _PAGE]):
            if value is None:
                continue  # sent again or dropped meanwhile
            letter = _decode(value)
            if (task is None or task in (letter.task, letter.task.rsplit(".", 1)[-1])) and (
                text is None or text.casefold() in f"{letter.reason}\0{letter.arguments}".casefold()
            ):
                yield letter


def read(client: redis.Redis, prefix: str) -> DeadLetter:
    """The letter whose id this is, or the only one whose id begins so.

    Raises:
        LetterUnknown: there is none.
        LetterAmbiguous: there are several.
    """
    ids = _ids(client)
    matches = [prefix] if prefix in ids else [letter_id for letter_id in ids if prefix and letter_id.startswith(prefix)]
    if len(matches) > 1:
        raise LetterAmbiguous(prefix, matches)
    value = client.hget(LETTERS_KEY, matches[0]) if matches else None
    if value is None:
        raise LetterUnknown(prefix)
    return _decode(value)


def prefix_length(client: redis.Redis) -> int:
    """How many characters of any letter's id tell it from the others; eight at least, for the next letter's sake."""
    length = _SHORTEST_PREFIX
    for one, next_one in pairwise(sorted(_ids(client))):
        while one[:length] == next_one[:length]:
            length += 1
    return length


def message_of(client: redis.Redis, letter: DeadLetter) -> dict[str, Any]:
    """A letter's whole message; its body (arguments and what comes after the task) can be read.

    Raises:
        LetterUnknown: it was sent again or dropped meanwhile.
    """
    value = client.hget(MESSAGES_KEY, letter.id)
    if value is None:
        raise LetterUnknown(letter.id)
    message: dict[str, Any] = loads(_text(value).partition("\0")[2])
    encoded = message["properties"].get("body_encoding") == "base64"
    if encoded and message.get("content-type") == "application/json" and not message["headers"].get("compression"):
        message["body"] = json.loads(base64.b64decode(message["body"]))
    return message


def send_again(client: redis.Redis, letters: Iterable[DeadLetter]) -> int:
    """Queue letters again, their attempts begun anew; return how many. Each goes once, whoever asks.

    Raises:
        AgentLinkError: the run of one of them can't be resumed now.
    """
    sent = 0
    for letter in letters:
        if client.hexists(LETTERS_KEY, letter.id) and any(resume(client, letter) for resume in resumers):
            drop(client, [letter.id])
            sent += 1
        else:
            sent += bool(client.transaction(partial(_send, letter), INDEX_KEY, value_from_callable=True))
    return sent


def _send(letter: DeadLetter, pipe: Any) -> Any:
    """In a transaction that is begun anew should anybody touch the letters meanwhile."""
    value = pipe.hget(MESSAGES_KEY, letter.id)
    if value is None:
        return False  # somebody else has just done it
    key, _, message = _text(value).partition("\0")
    pipe.multi()
    payload = loads(message)
    if payload["headers"].get(ARGUMENTS_HEADER):
        pipe.execute_command(*held(letter.id, 2 * load().keep_results_s))
    pipe.lpush(key, dumps(_as_new(payload)))
    _forget(pipe, [letter.id])
    pipe.publish(WAKE_PREFIX + letter.queue, "")
    return True


def _as_new(payload: dict[str, Any]) -> dict[str, Any]:
    """The message as if nobody had tried it. Whoever sends it again wants it to run, expired or not."""
    payload.pop(DELIVERIES_HEADER, None)
    payload.pop("queued_at", None)
    headers = payload["headers"]
    headers.pop(DELIVERIES_HEADER, None)
    headers |= {"retries": 0, "expires": None, "eta": None}
    return payload


def drop(client: redis.Redis, letter_ids: Iterable[str]) -> int:
    """Forget letters; return how many there were."""
    ids = list(letter_ids)
    if not ids:
        return 0
    with client.pipeline() as pipe:
        _forget(pipe, ids)
        return int(pipe.execute()[0])


def _forget(pipe: Any, ids: list[str]) -> None:
    pipe.zrem(INDEX_KEY, *ids)
    pipe.hdel(LETTERS_KEY, *ids)
    pipe.hdel(MESSAGES_KEY, *ids)
    pipe.delete(*(WAITS_PREFIX + _holder(letter_id) for letter_id in ids))


def _holder(letter_id: str) -> str:
    """As whom a letter holds its message's large arguments: the task by itself has failed, and holds nothing."""
    return f"dead:{letter_id}"


def _ids(client: redis.Redis) -> list[str]:
    """Of all letters not too old, newest first."""
    ids: list[bytes] = client.zrevrangebyscore(INDEX_KEY, "+inf", time.time() - KEEP_S)  # type: ignore[assignment]  # no scores asked for
    return [_text(letter_id) for letter_id in ids]


def _decode(value: bytes | str) -> DeadLetter:
    return DeadLetter(**json.loads(value))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
