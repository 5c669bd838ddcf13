"""kombu's Redis transport with leases: what is taken from a queue is in flight in the same step, and nothing is lost.

Consumers that acknowledge (Celery's workers) take messages through their process's `Lease`: several at a time, woken by
a publication instead of polling. Consumers that don't (replies to remote control) and fan-out stay as kombu has them.
Messages with an `eta` wait in the broker. Calls made under a `deadline` are accepted or refused within it, and those
made inside one `together` reach the broker in one step.

Private parts of kombu 5.7 used here and held by a contract test: `kombu.transport._transport_cache`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import Any, ClassVar

import redis
from kombu import transport as kombu_transport
from kombu.transport import redis as kombu_redis

from agentlink.broker.calls import current_call
from agentlink.broker.errors import reason_of, refuses_to_write
from agentlink.broker.lease import RUNS_STEP, Lease
from agentlink.broker.poller import Poller
from agentlink.broker.publishing import PublishingChannel
from agentlink.broker.taking import TakingChannel


class Channel(TakingChannel, PublishingChannel):
    """A Redis channel that takes through the process's lease and publishes within a deadline."""

    from_transport_options = (*kombu_redis.Channel.from_transport_options, "lease_s")

    #: Every priority has its list, and ten more than it that of messages of runs; the most urgent is 9. kombu's own has
    #: four lists, and the most urgent is 0.
    priority_steps: ClassVar[list[int]] = list(range(2 * RUNS_STEP))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        call = current_call.get()
        self._own_line: redis.Redis | None = None
        self._loop_thread = threading.get_ident()
        self._line_pid = 0
        try:
            self._connect(*args, **kwargs)
        except (redis.TimeoutError, redis.ConnectionError) as error:
            # kombu retries a connection for as long as its policy says; a caller with a deadline has had enough when
            # that is over, or when the server has taken its connection and does not answer.
            hung = call is not None and call.from_outside and isinstance(error, redis.TimeoutError)
            if call is not None and (hung or time.monotonic() >= call.ends_at):
                raise self._unavailable(error) from error
            raise

    def _connect(self, *args: Any, **kwargs: Any) -> None:
        """As kombu does; a worker tries a broker that takes nothing again, as one that does not answer."""
        try:
            super().__init__(*args, **kwargs)
        except redis.ResponseError as error:
            if not refuses_to_write(error):
                raise
            call = current_call.get()
            if call is not None and call.from_outside:
                raise self._unavailable(reason_of(error)) from error
            raise redis.ConnectionError(str(error)) from error

    @property
    def line(self) -> redis.Redis:
        """One connection for all this channel says, kept: making a client costs as much as the round trip."""
        if self._own_line is None or self._line_pid != os.getpid():  # a forked process must not speak on it too
            self._own_line = self.Client(connection_pool=self.pool, single_connection_client=True)
            self._line_pid = os.getpid()
        return self._own_line

    def close(self) -> None:
        """Close it, also when the connection is dead.

        kombu 5.7 reads the reply to a waiting BRPOP first; on a dead connection that raises and leaves the channel half
        closed, and the next attempt to close it ends the worker: "'NoneType' object has no attribute 'hostname'".
        """
        line, self._own_line = self._own_line, None
        lease: Lease | None = self.__dict__.get("lease")  # unless nothing was ever taken
        try:
            super().close()
        finally:
            if not self.closed:
                super().close()
            if line is not None and self._line_pid == os.getpid():
                if lease is not None and lease.worker:
                    with contextlib.suppress(redis.RedisError):
                        lease.exchange(line, (), (), 0)
                line.close()


class Transport(kombu_redis.Transport):
    """kombu's Redis transport with our channel."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Have the loop watch our sockets and call us in time."""
        before = set(loop.on_tick)
        super().register_with_event_loop(connection, loop)
        self.cycle.call_later = loop.call_later
        # kombu tells the loop of every socket again at each turn; new ones are enough.
        loop.on_tick -= set(loop.on_tick) - before
        watched: dict[int, Any] = {}
        ear, self.cycle.waker = socket.socketpair()
        for end in (ear, self.cycle.waker):
            end.setblocking(False)
        loop.add_reader(ear, _hear, ear)

        def on_tick() -> None:
            self.cycle.on_poll_start()
            for fd, sock in self.cycle.sockets():
                if watched.get(fd) is not sock or fd not in loop.readers:
                    watched[fd] = sock
                    loop.add_reader(fd, self.on_readable, fd)

        loop.on_tick.add(on_tick)


def _hear(ear: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        ear.recv(4096)


def register() -> None:
    """Make this the transport of every `redis://`, `redis+socket://` and `sentinel://` URL in this process.

    By kombu's table of names, not by Celery's `broker_transport`: a URL with a `+` in it ignores that setting, and so
    do the connections of kombu's pools.
    """
    for scheme, transport in _TRANSPORTS.items():
        kombu_transport.TRANSPORT_ALIASES[scheme] = transport
        kombu_transport._transport_cache.pop(scheme, None)


_TRANSPORTS = {
    "redis": f"{__name__}:Transport",
    "rediss": f"{__name__}:Transport",
    "sentinel": "agentlink.broker.sentinel:SentinelTransport",
}
