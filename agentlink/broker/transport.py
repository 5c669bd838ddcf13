"""kombu's Redis transport with calls that are accepted or refused within a deadline, and nothing in between.

Private parts of kombu used here, all of `kombu.transport.redis` 5.7 and held by a contract test:
`Channel._put`, `Channel._expires`, `Channel._q_for_pri`, `Channel._get_message_priority`, `Channel.conn_or_acquire`;
and `kombu.transport._transport_cache`.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from importlib import resources
from typing import Any

import redis
from kombu import transport as kombu_transport
from kombu.transport import redis as kombu_redis
from kombu.utils.json import dumps

from agentlink.broker.errors import BrokerUnavailable

Command = Sequence[Any]

#: The message property that carries commands to run in the same step that queues the message.
ALSO = "agentlink_also"

_PUBLISH = resources.files(__package__).joinpath("publish.lua").read_text()
#: Of the time a caller waits for an answer, the share in which the server may still accept the call: an answer sent at
#: the end of it reaches a caller that is still there.
_ACCEPT_FRACTION = 0.75
#: Until when the call being made in this context may be tried again, in `time.monotonic()` seconds.
_deadline: ContextVar[float | None] = ContextVar("agentlink_publish_deadline", default=None)


@contextlib.contextmanager
def deadline(timeout_s: float) -> Iterator[None]:
    """Give the calls made inside `timeout_s` to reach a broker; the last try may take the socket's timeout on top."""
    token = _deadline.set(time.monotonic() + timeout_s)
    try:
        yield
    finally:
        _deadline.reset(token)


class Channel(kombu_redis.Channel):
    """A Redis channel whose calls have a deadline."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        ends_at = _deadline.get()
        try:
            super().__init__(*args, **kwargs)
        except (redis.TimeoutError, redis.ConnectionError) as error:
            # kombu retries a connection for as long as its policy says; a caller with a deadline has had enough when
            # that is over, or when the server has taken its connection and does not answer.
            if ends_at is not None and (isinstance(error, redis.TimeoutError) or time.monotonic() >= ends_at):
                raise self._unavailable(error) from error
            raise
        self._publish_script = self.client.register_script(_PUBLISH)
        self._clock_ahead_s: float | None = None

    def close(self) -> None:
        """Close it, also when the connection is dead.

        kombu 5.7 reads the reply to a waiting BRPOP first; on a dead connection that raises and leaves the channel half
        closed, and the next attempt to close it ends the worker: "'NoneType' object has no attribute 'hostname'".
        """
        try:
            super().close()
        finally:
            if not self.closed:
                super().close()

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        also = message["properties"].pop(ALSO, [])
        if _deadline.get() is None or not self.socket_timeout or queue in self._expires or "_publish_batch" in kwargs:
            super()._put(queue, message, **kwargs)
            return
        key = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))
        with self.conn_or_acquire() as client:
            try:
                latest_ms = int((self._server_time_s(client) + self.socket_timeout * _ACCEPT_FRACTION) * 1000)
                queued = self._publish_script(
                    keys=[key], args=[dumps(message), latest_ms, json.dumps(also)], client=client
                )
            except redis.TimeoutError as error:
                raise self._unavailable(error) from error
        if not queued:
            raise self._unavailable("it came to the call too late")

    def _server_time_s(self, client: redis.Redis) -> float:
        """The server's clock now: asked once, then carried on with ours, since the two machines' clocks may differ."""
        if self._clock_ahead_s is None:
            seconds, microseconds = client.time()
            self._clock_ahead_s = seconds + microseconds / 1e6 - time.monotonic()
        return time.monotonic() + self._clock_ahead_s

    def _unavailable(self, reason: object) -> BrokerUnavailable:
        return BrokerUnavailable(self.connection.client.as_uri(), str(reason))


class Transport(kombu_redis.Transport):
    """kombu's Redis transport with our channel."""

    Channel = Channel


def register() -> None:
    """Make this the transport of every `redis://` and `redis+socket://` URL in this process.

    By kombu's table of names, not by Celery's `broker_transport`: a URL with a `+` in it ignores that setting, and so
    do the connections of kombu's pools. Channels of other apps in the process behave as kombu's own do, since only
    calls made under a `deadline` are treated differently.
    """
    for scheme in ("redis", "rediss"):
        kombu_transport.TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
        kombu_transport._transport_cache.pop(scheme, None)
