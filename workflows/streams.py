"""What a run's steps put out and log, read while they do or later, in the order in which the broker was told."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import redis
from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu.utils.json import dumps, loads

from agentlink.broker.results import PATIENCE_S
from agentlink.broker.streams import EMIT, LOG, stream_key, told_key
from workflows import store
from workflows.errors import RunUnknown
from workflows.store import as_text

logger = logging.getLogger(__name__)

#: One look at a run's state at least so often while nothing comes: where nobody says that it has ended.
_LOOK_EVERY_S = 0.5
_ENTRIES_AT_ONCE = 200
_BROKER_AWAY_PAUSE_S = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamItem:
    """One thing that a step has said: a part of its output, or a line of its log.

    A step whose process was killed, or that is retried, begins again: what its new attempt says has a higher `attempt`,
    and stands for what the one before has said. An attempt that was killed lacks what it said in its last moment.
    """

    step_id: str
    task: str
    #: Which execution of the step: the first is 1.
    attempt: int
    #: "emit" or "log".
    kind: str
    #: What was emitted; or the line.
    data: Any
    #: When it was said, in seconds since 1970.
    at: float
    #: How many tasks have replaced themselves, one by the next, until it came to the one that says it.
    replacements: int = 0

    @property
    def is_text(self) -> bool:
        """Whether it is text that goes on where the step's last part has ended, as opposed to data or a line."""
        return self.kind == EMIT and isinstance(self.data, str)


def follow(
    client: redis.Redis, run_id: str, kinds: Collection[str] = (EMIT, LOG), timeout_s: float | None = None
) -> Iterator[StreamItem]:
    """All that a run's steps have said so far, then live what they say, until the run has ended.

    A broker that goes away meanwhile is waited for, and reading goes on where it was.

    Raises:
        RunUnknown: it never was, or it ended longer ago than results are kept.
        celery.exceptions.TimeoutError: nothing came for `timeout_s`.
    """
    last_id, heard_at, answered_at = "0-0", time.monotonic(), time.monotonic()
    while True:
        try:
            # Before the stream: what is read after it is all there is, once the run has ended.
            goes_on = store.which_go_on(client, [run_id]).get(run_id)
            if goes_on is None:
                raise RunUnknown(run_id)
            if last_id == "0-0":
                _warn_of_lost(client, run_id)
            entries = _read(client, run_id, last_id, _wait_s(heard_at, timeout_s) if goes_on else 0)
            answered_at = time.monotonic()
        except (redis.ConnectionError, redis.TimeoutError):
            if time.monotonic() > answered_at + PATIENCE_S:
                raise
            time.sleep(_BROKER_AWAY_PAUSE_S)
            goes_on, entries = True, []
        for entry_id, fields in entries:
            yield from (item for item in _items(fields) if item.kind in kinds)
            last_id = entry_id
        if entries:
            heard_at = answered_at = time.monotonic()
        elif not goes_on:
            return
        elif timeout_s is not None and time.monotonic() >= heard_at + timeout_s:
            raise CeleryTimeoutError(f"run {run_id} has put out nothing for {timeout_s} s")


def said_so_far(client: redis.Redis, run_id: str, kinds: Collection[str]) -> list[StreamItem]:
    """All that a run's steps have said so far.

    Raises:
        RunUnknown: it never was, or it ended longer ago than results are kept.
    """
    if run_id not in store.which_go_on(client, [run_id]):
        raise RunUnknown(run_id)
    said: list[StreamItem] = []
    last_id = "0-0"
    while entries := _read(client, run_id, last_id, 0):
        for entry_id, fields in entries:
            said += [item for item in _items(fields) if item.kind in kinds]
            last_id = entry_id
    return said


def said_last(
    client: redis.Redis, run_id: str, count: int, *, step_id: str | None = None, looked_at: int = 5_000
) -> list[StreamItem]:
    """What a run's steps, or one of them, have said last, oldest first: so much as is found among the last entries."""
    said: list[StreamItem] = []
    before, left = "+", looked_at
    while left > 0 and len(said) < count:
        answer: Any = client.xrevrange(stream_key(run_id), max=before, count=_ENTRIES_AT_ONCE)
        entries = [
            (as_text(key), {as_text(name): as_text(value) for name, value in fields.items()}) for key, fields in answer
        ]
        for _, fields in entries:
            said += reversed([item for item in _items(fields) if step_id in (None, item.step_id)])
        if len(entries) < _ENTRIES_AT_ONCE:
            break
        before, left = f"({entries[-1][0]}", left - len(entries)
    return said[count - 1 :: -1] if len(said) >= count else said[::-1]


def last_said_id(client: redis.Redis, run_id: str) -> str | None:
    """What tells whether anything was said since: the id of the stream's last entry."""
    answer: Any = client.xrevrange(stream_key(run_id), count=1)
    return as_text(answer[0][0]) if answer else None


def joined(items: Collection[StreamItem]) -> str:
    """What was emitted as one text: of each step what its latest attempt has said; data other than text as JSON."""
    latest: dict[tuple[str, int], int] = {}
    for item in items:
        key = (item.step_id, item.replacements)
        latest[key] = max(item.attempt, latest.get(key, 0))
    return "".join(
        item.data if isinstance(item.data, str) else dumps(item.data)
        for item in items
        if item.kind == EMIT and item.attempt == latest[item.step_id, item.replacements]
    )


def _wait_s(heard_at: float, timeout_s: float | None) -> float:
    left_s = _LOOK_EVERY_S if timeout_s is None else heard_at + timeout_s - time.monotonic()
    return min(_LOOK_EVERY_S, max(left_s, 0.0))


def _read(client: redis.Redis, run_id: str, after_id: str, wait_s: float) -> list[tuple[str, dict[str, str]]]:
    """The next entries; waits so long for the first."""
    block_ms = int(wait_s * 1000) or None
    answer: Any = client.xread({stream_key(run_id): after_id}, count=_ENTRIES_AT_ONCE, block=block_ms)
    entries = [entry for _, entries in answer for entry in entries]
    return [
        (as_text(entry_id), {as_text(name): as_text(value) for name, value in fields.items()})
        for entry_id, fields in entries
    ]


def _items(fields: dict[str, str]) -> Iterator[StreamItem]:
    if "items" not in fields:  # the run's end, which wakes those who wait
        return
    step_id, _, replacements = fields["step"].partition("/")
    for kind, at, data in loads(fields["items"]):
        yield StreamItem(
            step_id=step_id,
            task=fields["task"],
            attempt=int(fields["attempt"]),
            kind=kind,
            data=data,
            at=at,
            replacements=int(replacements or 0),
        )


def _warn_of_lost(client: redis.Redis, run_id: str) -> None:
    if lost := client.hget(told_key(run_id), "#dropped"):
        logger.warning("run %s has put out more than is kept (AGENTLINK_STREAM): its first %s entries are gone",
                       run_id, as_text(lost))  # fmt: skip
