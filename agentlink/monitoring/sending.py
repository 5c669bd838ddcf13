"""Sends the events of the log on to whoever listens to Celery's events: `celery events`, Flower, any receiver.

One worker at a time does, some hundred milliseconds after they were written, each at least once, in their order, and
from where the one before left off. So what happens is told by nobody who has something else to do, and it does not
matter whether anybody listens, or how fast.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import redis
from celery import Celery

from agentlink.broker.event_log import EVENTS
from agentlink.monitoring import events

_SENT_KEY = "agentlink:events:sent"
_KEEP_S = 30 * 86400
_AT_ONCE = 500
# As Celery's own of tasks, they go several in a message.
_GROUPS = frozenset({"workflow", "step", "alert", "agent"})
# What Celery's dispatchers put in by themselves, or take as their own arguments.
_RESERVED = frozenset(
    {"type", "hostname", "utcoffset", "pid", "clock", "timestamp", "blind", "retry", "retry_policy", "Event"}
)

_SUMMARIZE = EVENTS + "pcall(summarize, redis.call('TIME')[1])"


class Sender:
    """What the worker that sends them knows. One that takes over begins with a new one."""

    def __init__(self, app: Celery, client: redis.Redis, name: str) -> None:
        self._app, self._name = app, name
        sent: Any = client.get(_SENT_KEY)
        self._sent_id = sent.decode() if isinstance(sent, bytes) else sent or events.latest_id(client)
        self._dispatcher: Any = None
        #: How old the oldest event was that was sent since this was last set to 0.
        self.lag_s = 0.0

    def send(self, client: redis.Redis) -> None:
        """Send what is new; of very many the rest with the next call."""
        client.eval(_SUMMARIZE, 0)
        new = events.read(client, self._sent_id, _AT_ONCE)
        if not new:
            return
        self.lag_s = max(self.lag_s, time.time() - new[0].at)
        with self._dispatching() as dispatcher:
            # One group after the other, since a dispatcher gathers each by itself.
            for group, together in groupby(new, key=lambda event: event.kind.partition("-")[0]):
                for event in together:
                    if group != "guard":  # what a guard does, its worker has sent by itself
                        self._send(dispatcher, event)
                dispatcher.flush()
        self._sent_id = new[-1].id
        client.set(_SENT_KEY, self._sent_id, ex=_KEEP_S)

    def close(self) -> None:
        """Give up the connection; the next event makes another."""
        dispatcher, self._dispatcher = self._dispatcher, None
        if dispatcher is not None:
            with contextlib.suppress(Exception):
                dispatcher.close()
                dispatcher.connection.release()

    def _send(self, dispatcher: Any, event: events.Event) -> None:
        fields = {name: value for name, value in event.fields.items() if name not in _RESERVED}
        dispatcher.hostname = fields.get("worker") or self._name
        dispatcher.send(event.kind, timestamp=event.at, **fields)

    @contextlib.contextmanager
    def _dispatching(self) -> Iterator[Any]:
        if self._dispatcher is None:
            self._dispatcher = self._app.events.Dispatcher(
                self._app.connection_for_write(),
                hostname=self._name,
                buffer_while_offline=False,
                buffer_group=_GROUPS,
                buffer_limit=100,
            )
        try:
            yield self._dispatcher
        except Exception:
            self.close()
            raise
