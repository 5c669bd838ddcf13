"""How a schedule moves from one of its times to the next: done by workers, and only from the time that was read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import redis
from redis.client import Pipeline

from agentlink.broker.calls import Command
from workflows.schedules import INDEX_KEY, schedule_key


def due(client: redis.Redis, at_most: int) -> tuple[int, list[tuple[str, int]]]:
    """The server's time in ms, and the schedules that come next, each with when it does; at most so many."""
    with client.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.zrange(INDEX_KEY, 0, at_most - 1, withscores=True)
        (seconds, microseconds), coming = pipe.execute()
    now_ms = seconds * 1000 + microseconds // 1000
    return now_ms, [
        (name.decode() if isinstance(name, bytes) else name, int(next_ms))
        for name, next_ms in coming
        if not math.isinf(next_ms)
    ]


def firing_commands(name: str, due_ms: int, next_ms: int, now_ms: int, run_id: str) -> Iterator[Command]:
    """What goes to the broker with the message of the run for one time of a schedule: nothing, if it has passed on."""
    yield ["EXPECT", due_ms, "ZSCORE", INDEX_KEY, name]
    yield ["ZADD", INDEX_KEY, next_ms, name]
    yield ["HDEL", schedule_key(name), "error", "skipped", "waits_ms"]
    yield ["HSET", schedule_key(name), "fired_ms", now_ms, "run_id", run_id, "timed_run_id", run_id]


def run_now_commands(name: str, now_ms: int, run_id: str) -> Iterator[Command]:
    """What goes with the message of a run that a person has asked for: nothing, if the schedule is gone."""
    yield ["EXPECT", 1, "EXISTS", schedule_key(name)]
    yield ["HSET", schedule_key(name), "fired_ms", now_ms, "run_id", run_id]


def if_due(client: redis.Redis, name: str, due_ms: int, write: Callable[[Pipeline], object]) -> None:
    """Write something, if a schedule's next time is still this one."""

    def write_if_due(pipe: Pipeline) -> None:
        still = pipe.zscore(INDEX_KEY, name) == due_ms
        pipe.multi()
        if still:
            write(pipe)

    client.transaction(write_if_due, INDEX_KEY)


def move(client: redis.Redis, name: str, due_ms: int, next_ms: int) -> None:
    """Have a schedule come at another time than it would, if that is still its next."""
    if_due(client, name, due_ms, lambda pipe: pipe.zadd(INDEX_KEY, {name: next_ms}))


def skip(client: redis.Redis, name: str, due_ms: int, next_ms: int) -> None:
    """Leave a time out, since a run goes on, if it is still the schedule's next."""

    def write(pipe: Pipeline) -> None:
        pipe.zadd(INDEX_KEY, {name: next_ms})
        pipe.hincrby(schedule_key(name), "skipped", 1)

    if_due(client, name, due_ms, write)


def note_waiting(client: redis.Redis, name: str, due_ms: int) -> None:
    """Have a time, if it is still the schedule's next, wait for the end of a run: it is not one that is missed."""
    if_due(client, name, due_ms, lambda pipe: pipe.hset(schedule_key(name), "waits_ms", due_ms))


def note_error(client: redis.Redis, name: str, due_ms: int, error: str) -> None:
    """Have people see why a schedule does not fire, if it still has not."""
    if_due(client, name, due_ms, lambda pipe: pipe.hset(schedule_key(name), "error", error))
