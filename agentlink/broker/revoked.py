"""Revoked tasks' ids, kept in the broker: a worker that was not up when a task was revoked knows it all the same.

Stock Celery tells the workers that are there. Each remembers that until it ends, for three hours and 50,000 ids. Here
the broker remembers, for as long as results are kept, and workers keep what it does: they read all of it with every
connection, and once a second what is new (the broadcast, which comes at once, can get lost with a connection).

Checked with Celery 5.7: `celery.worker.state.revoked` is a `LimitedSet`, asked by every reader as `id in revoked`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import redis
from celery import Celery, bootsteps
from celery.worker import state

from agentlink.broker.calls import Command
from agentlink.broker.lease import REVOKED_KEY

logger = logging.getLogger(__name__)

#: The most ids kept, about ten megabytes of them; the oldest go first.
KEEP_IDS = 100_000

# Lua can hand over some thousand words at once.
_IDS_A_COMMAND = 1_000
_LOOK_EVERY_S = 1.0
# Clocks of several callers may differ by this; what is read twice does no harm.
_OVERLAP_S = 60.0
# Celery adds the ids of expired tasks as well, and nobody needs those: that many fit in before they are cleared out.
_ROOM = 100_000


def record_commands(task_ids: Sequence[str], keep_s: float) -> list[Command]:
    """What remembers that tasks are revoked; those too old or too many are forgotten."""
    now = time.time()
    parts = [task_ids[start : start + _IDS_A_COMMAND] for start in range(0, len(task_ids), _IDS_A_COMMAND)]
    added = [["ZADD", REVOKED_KEY, *(word for task_id in part for word in (now + keep_s, task_id))] for part in parts]
    return [
        *added,
        ["ZREMRANGEBYSCORE", REVOKED_KEY, "-inf", now],
        ["ZREMRANGEBYRANK", REVOKED_KEY, 0, -KEEP_IDS - 1],
        ["EXPIRE", REVOKED_KEY, int(keep_s) + 1],
    ]


def install(app: Celery) -> None:
    """Have every worker of `app` know what is recorded. Doing it twice changes nothing."""
    app.steps["consumer"].add(RevokedStep)


class Known:
    """What a worker knows of the broker's record; `revoked` is Celery's own set."""

    def __init__(self, revoked: Any) -> None:
        self._revoked = revoked
        self._read_up_to = 0.0
        # Its own limits would drop what is to be kept: once it is full, and, three hours old, at a neighbour's hello.
        revoked.maxlen = revoked.expires = 0

    def read_all(self, client: redis.Redis) -> None:
        """Learn everything that is recorded; forget what is not when there is too much of it."""
        recorded = _recorded(client, time.time())
        if len(self._revoked) > KEEP_IDS + _ROOM:
            self._revoked.clear()
        self._learn(recorded)

    def read_new(self, client: redis.Redis) -> None:
        """Learn what has been recorded since the last time."""
        if len(self._revoked) > KEEP_IDS + _ROOM:
            self.read_all(client)
        else:
            self._learn(_recorded(client, max(time.time(), self._read_up_to - _OVERLAP_S)))

    def learn(self, task_id: str) -> None:
        """Know of one at once: its message comes next."""
        self._revoked.add(task_id)

    def _learn(self, recorded: list[tuple[bytes, float]]) -> None:
        for task_id, forget_at in recorded:
            if (text := task_id.decode()) not in self._revoked:
                self._revoked.add(text)
            self._read_up_to = max(self._read_up_to, forget_at)


def _recorded(client: redis.Redis, since: float) -> list[tuple[bytes, float]]:
    recorded: list[tuple[bytes, float]] = client.zrangebyscore(REVOKED_KEY, since, "+inf", withscores=True)  # type: ignore[assignment]
    return recorded


class RevokedStep(bootsteps.StartStopStep):
    """Keeps a worker's knowledge of revoked tasks up to date, from before it takes its first message."""

    # By then the worker hears broadcasts, or is about to; and the event loop, which takes messages, starts later.
    requires = ("celery.worker.consumer.control:Control",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._known = Known(state.revoked)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        """After every connect: read it all, then look for news."""
        # This one's timeouts are short: the event loop waits for what it is asked. Not the channel's own client: after
        # mingle, a reply to a neighbour's hello is still waited for on that.
        channel = consumer.task_consumer.channel
        channel.on_revoked = self._known.learn
        client = channel.line
        self._known.read_all(client)
        self._timer = consumer.timer.call_repeatedly(_LOOK_EVERY_S, self._look, (client,))

    def stop(self, consumer: Any) -> None:
        """The worker takes nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, client: redis.Redis) -> None:
        try:
            self._known.read_new(client)
        except redis.RedisError as error:
            # The worker's own connection reports the trouble; once it is back everything is read anew.
            logger.debug("revoked tasks not read: %s", error)
