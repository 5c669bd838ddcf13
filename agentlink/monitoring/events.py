"""The events of the log, read: what has happened, oldest first. What kinds there are is in `KINDS`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from agentlink.broker.event_log import EVENTS_KEY, KINDS, Kind, Level, level_now, order_level, tell

__all__ = ["KINDS", "Event", "Kind", "Level", "latest_id", "level_now", "order_level", "read", "read_latest", "tell"]

#: The id before all others.
FIRST = "0"
# A reader that wants few of many kinds looks through so many events at a time.
_PAGE = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One event: `id` tells its place in the log, `at` when it was written there, in seconds since 1970."""

    id: str
    kind: str
    at: float
    fields: Mapping[str, Any]


def read(client: redis.Redis, since_id: str, count: int, kinds: Collection[str] | None = None) -> list[Event]:
    """The first events after the one of this id, oldest first, at most so many: all, or those of some kinds.

    `FIRST` is the id before all others; `latest_id` the one to begin with to hear of what is to come. Of events that
    have left the log since, those that are still there come.
    """
    found: list[Event] = []
    while len(found) < count:
        page: Any = client.xrange(EVENTS_KEY, min=f"({since_id}", count=_PAGE if kinds else count)
        events = [_decode(*entry) for entry in page]
        found += [event for event in events if kinds is None or event.kind in kinds]
        if not kinds or len(page) < _PAGE:
            break
        since_id = events[-1].id
    return found[:count]


def read_latest(
    client: redis.Redis, count: int, kinds: Collection[str] | None = None, *, until_id: str = "+"
) -> list[Event]:
    """The latest events up to an id, newest first, at most so many: all, or those of some kinds."""
    found: list[Event] = []
    before = until_id
    while len(found) < count:
        page: Any = client.xrevrange(EVENTS_KEY, max=before, count=_PAGE if kinds else count)
        events = [_decode(*entry) for entry in page]
        found += [event for event in events if kinds is None or event.kind in kinds]
        if not kinds or len(page) < _PAGE:
            break
        before = f"({events[-1].id}"
    return found[:count]


def latest_id(client: redis.Redis) -> str:
    """The id of the last event there is; `FIRST` where there is none."""
    last: Any = client.xrevrange(EVENTS_KEY, count=1)
    return _decode(*last[0]).id if last else FIRST


def _decode(entry_id: bytes | str, fields: Mapping[bytes | str, bytes | str]) -> Event:
    facts = {_text(name): _text(value) for name, value in fields.items()}
    event_id = _text(entry_id)
    return Event(
        id=event_id,
        kind=facts["kind"],
        at=int(event_id.partition("-")[0]) / 1000,
        fields=json.loads(facts["facts"]),
    )


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
