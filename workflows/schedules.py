"""Schedules: which workflow is run when. Kept in the broker, where all workers find them and people change them.

A schedule is a hash; one sorted set lists all of them by the time they come next, in ms since 1970 by the server's
clock, and those that are paused at infinity. Who moves a schedule on from one time to the next is in `schedule_turns`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import redis
from kombu.utils.json import dumps, loads
from redis.client import Pipeline

from agentlink.units import checked_name
from workflows.errors import ScheduleRefused, ScheduleUnknown
from workflows.schedule_definition import Definition
from workflows.store import as_text

#: All schedules, by the time they come next.
INDEX_KEY = "agentlink:schedules"

_PAUSED = math.inf


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What is known of a schedule. Times are seconds since 1970."""

    name: str
    definition: Definition
    paused: bool
    #: Whether code declares it, and whether a person has given it another definition since.
    declared: bool
    changed: bool
    next_at: float | None
    fired_at: float | None
    run_id: str | None
    error: str | None
    #: The last run that one of its times has started, where that is another than the last of all, which a person has.
    timed_run_id: str | None = None
    #: How many of its times were left out since its last run, which goes on; or the one that waits for its end, in ms.
    skipped: int = 0
    waits_ms: int | None = None

    @property
    def last_run_ids(self) -> list[str]:
        """The runs that may still go on."""
        return [run_id for run_id in dict.fromkeys((self.run_id, self.timed_run_id)) if run_id]


def schedule_key(name: str) -> str:
    """The key of a schedule's hash."""
    return f"agentlink:schedule:{name}"


def server_ms(client: redis.Redis) -> int:
    """The server's clock, by which all machines go."""
    seconds, microseconds = client.time()
    return seconds * 1000 + microseconds // 1000


def put(client: redis.Redis, name: str, definition: Definition, *, replace: bool = False, paused: bool = False) -> None:
    """Add a schedule, or give one that is there another definition; paused, it stays so.

    Raises:
        ScheduleRefused: the name is none, or there is one of this name and it is not to be replaced.
    """

    def write(pipe: Pipeline) -> None:
        fields = _fields(pipe, name)
        if fields and not replace:
            raise ScheduleRefused(name, "there is one already; --replace gives it what was asked for")
        if not fields:
            _check_name(name)
        now_ms = server_ms(pipe)
        pipe.multi()
        if paused:
            pipe.hset(schedule_key(name), "paused", "1")
        _write_definition(pipe, name, definition, now_ms, paused=paused or "paused" in fields)

    _change(client, name, write)


def remove(client: redis.Redis, name: str) -> None:
    """Forget a schedule.

    Raises:
        ScheduleUnknown: there is none of this name.
    """

    def write(pipe: Pipeline) -> None:
        _known(client, pipe, name)
        pipe.multi()
        pipe.delete(schedule_key(name))
        pipe.zrem(INDEX_KEY, name)

    _change(client, name, write)


def pause(client: redis.Redis, name: str) -> None:
    """Have a schedule not fire until it is resumed. What it has started goes on.

    Raises:
        ScheduleUnknown: there is none of this name.
    """

    def write(pipe: Pipeline) -> None:
        _known(client, pipe, name)
        pipe.multi()
        pipe.hset(schedule_key(name), "paused", "1")
        pipe.zadd(INDEX_KEY, {name: _PAUSED})

    _change(client, name, write)


def resume(client: redis.Redis, name: str) -> None:
    """Have a schedule fire again, at times to come; times of the pause are not missed ones.

    Raises:
        ScheduleUnknown: there is none of this name.
    """

    def write(pipe: Pipeline) -> None:
        fields = _known(client, pipe, name)
        now_ms = server_ms(pipe)
        pipe.multi()
        if "paused" in fields:
            pipe.hdel(schedule_key(name), "paused")
            _write_definition(pipe, name, _definition(fields["definition"]), now_ms, paused=False)

    _change(client, name, write)


def read(client: redis.Redis, name: str) -> Schedule:
    """One schedule.

    Raises:
        ScheduleUnknown: there is none of this name.
    """
    with client.pipeline() as pipe:
        pipe.hgetall(schedule_key(name))
        pipe.zscore(INDEX_KEY, name)
        fields, next_ms = pipe.execute()
    if not fields:
        raise ScheduleUnknown(name, names(client))
    return _decode(name, fields, next_ms)


def read_all(client: redis.Redis) -> list[Schedule]:
    """All schedules, in the order of their names."""
    known = names(client)
    with client.pipeline() as pipe:
        for name in known:
            pipe.hgetall(schedule_key(name))
            pipe.zscore(INDEX_KEY, name)
        answers = pipe.execute()
    entries = zip(known, answers[::2], answers[1::2], strict=True)
    return [_decode(name, fields, next_ms) for name, fields, next_ms in entries if fields]


def names(client: redis.Redis) -> list[str]:
    """The names of all schedules, in order."""
    found: list[Any] = client.zrange(INDEX_KEY, 0, -1)  # no scores asked for
    return sorted(as_text(name) for name in found)


def declare(client: redis.Redis, name: str, definition: Definition) -> None:
    """Have a schedule be as code declares it, unless a person has given it another definition."""

    def write(pipe: Pipeline) -> None:
        fields, said = _fields(pipe, name), _json(definition)
        now_ms = server_ms(pipe)
        pipe.multi()
        if fields.get("declared") == said:
            return
        pipe.hset(schedule_key(name), "declared", said)
        if not fields or fields["definition"] == fields.get("declared"):
            _write_definition(pipe, name, definition, now_ms, paused="paused" in fields)

    _change(client, name, write)


def undeclare(client: redis.Redis, name: str) -> None:
    """Forget a schedule that code declares no more. One that a person has changed is that person's from now on."""

    def write(pipe: Pipeline) -> None:
        fields = _fields(pipe, name)
        pipe.multi()
        if "declared" not in fields:
            return
        pipe.hdel(schedule_key(name), "declared")
        if fields["definition"] == fields["declared"]:
            pipe.delete(schedule_key(name))
            pipe.zrem(INDEX_KEY, name)

    _change(client, name, write)


def _check_name(name: str) -> None:
    try:
        checked_name(name)
    except ValueError as error:
        raise ScheduleRefused(name, str(error)) from None


def _change(client: redis.Redis, name: str, write: Callable[[Pipeline], None]) -> None:
    # Two may change it at once, or a worker fires it meanwhile: whoever comes second begins anew.
    client.transaction(write, schedule_key(name))


def _write_definition(pipe: Pipeline, name: str, definition: Definition, now_ms: int, *, paused: bool) -> None:
    pipe.hset(schedule_key(name), "definition", _json(definition))
    pipe.hdel(schedule_key(name), "error", "waits_ms")
    pipe.zadd(INDEX_KEY, {name: _PAUSED if paused else definition.next_ms(now_ms, now_ms)})


def _known(client: redis.Redis, pipe: Pipeline, name: str) -> dict[str, str]:
    if not (fields := _fields(pipe, name)):
        raise ScheduleUnknown(name, names(client))
    return fields


def _fields(client: redis.Redis, name: str) -> dict[str, str]:
    return {as_text(field): as_text(value) for field, value in client.hgetall(schedule_key(name)).items()}


def _json(definition: Definition) -> str:
    text: str = dumps(asdict(definition))
    return text


def _definition(said: str) -> Definition:
    return Definition(**loads(said))


def _decode(name: str, raw: Mapping[Any, Any], next_ms: float | None) -> Schedule:
    fields = {as_text(field): as_text(value) for field, value in raw.items()}
    paused = "paused" in fields
    return Schedule(
        name=name,
        definition=_definition(fields["definition"]),
        paused=paused,
        declared="declared" in fields,
        changed="declared" in fields and fields["declared"] != fields["definition"],
        next_at=None if next_ms is None or math.isinf(next_ms) else next_ms / 1000,
        fired_at=int(fields["fired_ms"]) / 1000 if "fired_ms" in fields else None,
        run_id=fields.get("run_id"),
        error=fields.get("error"),
        timed_run_id=fields.get("timed_run_id"),
        skipped=int(fields.get("skipped", 0)),
        waits_ms=int(fields["waits_ms"]) if "waits_ms" in fields else None,
    )
