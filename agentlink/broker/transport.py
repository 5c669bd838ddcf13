"""kombu's Redis transport with leases: what is taken from a queue is in flight in the same step, and nothing is lost.

Consumers that acknowledge (Celery's workers) take messages through their process's `Lease`: several at a time, woken by
a publication instead of polling. Consumers that don't (replies to remote control) and fan-out stay as kombu has them.
Messages with an `eta` wait in the broker. Calls made under a `deadline` are accepted or refused within it, and those
made inside one `together` reach the broker in one step.

Private parts of kombu used here, all of `kombu.transport.redis` 5.7 and held by a contract test: of `Channel` `_put`,
`_get`, `_purge`, `_delete`, `_expires`, `_q_for_pri`, `_get_message_priority`, `_subscribe`, `_receive`, `_get_pool`,
`_tag_to_queue`; of `SentinelChannel` `_sentinel_manager`; of `MultiChannelPoller` `_channels`, `_fd_to_chan`,
`_register_BRPOP`, `_register_LISTEN`, `_update_brpop_polling`; and `kombu.transport._transport_cache`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, partial
from importlib import resources
from queue import Empty
from typing import Any, ClassVar

import redis
from amqp.exceptions import RecoverableConnectionError
from kombu import transport as kombu_transport
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.json import dumps, loads
from redis.commands.core import Script

from agentlink.broker.errors import BrokerUnavailable
from agentlink.broker.lease import ACKNOWLEDGE_AT_ONCE, DELAYED_PREFIX, WAKE_PREFIX, Lease, Taken

logger = logging.getLogger(__name__)

Command = Sequence[Any]

#: The message property that carries commands to run in the same step that queues the message.
ALSO = "agentlink_also"
#: The message header that tells how often the message's task was started by a worker that ended before it did.
DELIVERIES_HEADER = "agentlink_deliveries"

_PUBLISH = resources.files(__package__).joinpath("scripts", "publish.lua").read_text()
#: Of the time a caller waits for an answer, the share in which the server may still accept the call: an answer sent at
#: the end of it reaches a caller that is still there.
_ACCEPT_FRACTION = 0.75
# A message without news of it (from a client with kombu's own transport) is found after this time at the latest.
_LOOK_AGAIN_S = 1.0
# Acknowledgements may wait this long for company.
_ACKNOWLEDGE_WITHIN_S = 0.005
# With no limit on what may be prefetched, and at most.
_WINDOW_MAX = 64
# A worker holds what it has lately finished in this time: many short tasks, and no long one more than it can run.
_WINDOW_S = 0.1
# Bounds one script call.
_TOGETHER_MAX = 500

# How long the server remembers that it has accepted a call, in case its answer got lost.
_REMEMBER_S = 10.0
_RETRY_S = 0.05
_ROOM_RETRY_S = 1.0
_NO_ROOM = (redis.OutOfMemoryError, redis.ReadOnlyError)
# Above this share of its memory the broker takes no new calls from outside: workers need the rest to finish.
_FULL_FRACTION = 0.95
_FILLING_FRACTION = 0.8
_WARN_AGAIN_S = 60.0
_LOOK_AT_MEMORY_S = 0.5

_call: ContextVar[Call | None] = ContextVar("agentlink_call", default=None)
_together: ContextVar[Bundle | None] = ContextVar("agentlink_together", default=None)
_leases: dict[str, Lease] = {}


@dataclass
class Call:
    """A call being made: until when it may be tried again (`time.monotonic()`), and what tells its tries apart."""

    ends_at: float
    #: Whether it comes from outside: from no task that has to end for memory to be freed.
    from_outside: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    parts: int = 0

    def next_part(self) -> str:
        """The name of what is sent next: the same for every try of it."""
        self.parts += 1
        return f"agentlink:sent:{self.id}:{self.parts}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A message on its way: where it goes, its JSON, when it is due (ms, '' for now), and who is told."""

    key: str
    message: str
    due_ms: str
    wake: str


@dataclass
class Bundle:
    """Messages that reach the broker in one step."""

    messages: list[Outgoing] = field(default_factory=list)
    also: list[Command] = field(default_factory=list)
    channel: Channel | None = None

    def send(self) -> None:
        """Send what was gathered."""
        messages, also, self.messages, self.also = self.messages, self.also, [], []
        if self.channel is not None and messages:
            self.channel.publish(messages, also)


@contextlib.contextmanager
def deadline(timeout_s: float, *, from_outside: bool = True) -> Iterator[Call]:
    """Give the call made inside `timeout_s` to reach a broker; the last try may take the socket's timeout on top.

    Inside another deadline, that one holds.
    """
    if (outer := _call.get()) is not None:
        yield outer
        return
    call = Call(time.monotonic() + timeout_s, from_outside)
    token = _call.set(call)
    try:
        yield call
    finally:
        _call.reset(token)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Send the messages published inside in one step, at the end; should the block fail, none of them."""
    if _together.get() is not None:
        yield
        return
    bundle = Bundle()
    token = _together.set(bundle)
    try:
        yield
    finally:
        _together.reset(token)
    bundle.send()


class QoS(virtual.QoS):
    """What a channel has delivered. The broker's side of it is the process's lease."""

    def __init__(self, channel: Channel, prefetch_count: int = 0) -> None:
        super().__init__(channel, prefetch_count)
        self._finished_at: deque[float] = deque(maxlen=_WINDOW_MAX)

    @property
    def window(self) -> int:
        """How many messages may be in hand: the prefetch count, or what is finished in a moment if that is more."""
        if not self.prefetch_count:
            return _WINDOW_MAX
        since = time.monotonic() - _WINDOW_S
        while self._finished_at and self._finished_at[0] < since:
            self._finished_at.popleft()
        prefetch: int = self.prefetch_count
        return max(prefetch, len(self._finished_at))

    def can_consume(self) -> bool:
        """Whether another message may be taken."""
        return self.in_hand < self.window

    @property
    def in_hand(self) -> int:
        """How many messages are delivered and not settled."""
        in_hand: int = len(self._delivered) - len(self._dirty)
        return in_hand

    def ack(self, delivery_tag: str) -> None:
        """The message is done with."""
        self._finished_at.append(time.monotonic())
        self.channel.lease.acknowledge(delivery_tag)
        super().ack(delivery_tag)
        self.channel.tell()

    def forget(self, delivery_tag: str) -> None:
        """The message is no longer ours; the lease knows."""
        super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """The message is done with, or goes back to the head of its queue."""
        if requeue:
            self.channel.lease.give_back(delivery_tag)
        else:
            self.channel.lease.acknowledge(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)
        self.channel.tell()

    def restore_unacked(self) -> list[Any]:
        """Give back what is not being worked on. What is stays ours: the lease outlives this channel's connection."""
        self._flush()
        lease = self.channel.lease
        if lease.held_here and lease.worker:
            for tag in self._delivered.keys() - lease.running_tags():
                lease.give_back(tag)
        self._delivered.clear()
        return []


class Poller(kombu_redis.MultiChannelPoller):
    """kombu's poller, with channels that take through a lease."""

    #: The event loop's, once there is one.
    call_later: Callable[..., Any] | None = None
    #: Written to, it wakes that loop.
    waker: socket.socket | None = None

    def close(self) -> None:
        """Close what was opened for the loop too."""
        super().close()
        if self.waker is not None:
            self.waker.close()
            self.waker = None

    def on_poll_start(self) -> None:
        """Take what may be taken, before the loop goes to sleep."""
        self._update_brpop_polling()
        for channel in self._channels:
            if channel.leased:
                self._register_LISTEN(channel)
                channel.take()
                continue
            if channel.active_queues and channel.qos.can_consume():
                self._register_BRPOP(channel)
            if channel.active_fanout_queues:
                self._register_LISTEN(channel)

    def sockets(self) -> list[tuple[int, Any]]:
        """Every socket to be watched, by its number."""
        return [(sock.fileno(), sock) for sock in self._chan_to_sock.values() if sock.fileno() in self.fds]

    def on_readable(self, fileno: int) -> None:
        """Read what has come; news is read also while nothing may be taken, or the loop would not sleep for it."""
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if kind == "LISTEN":
            channel.handlers[kind]()
        else:
            super().on_readable(fileno)

    def get(self, callback: Any, timeout: float | None = None) -> None:
        """For consumers without an event loop: deliver something, or raise `Empty` after `timeout`."""
        leased = [channel for channel in self._channels if channel.leased]
        delivered = sum(channel.delivered for channel in leased)
        wait_s = min([_LOOK_AGAIN_S, *(channel.sleep_s for channel in leased)]) if leased else timeout
        try:
            super().get(callback, wait_s if timeout is None else min(timeout, wait_s or timeout))
        except Empty:
            if sum(channel.delivered for channel in leased) == delivered:
                raise

    def on_poll_init(self, poller: Any) -> None:
        """There is nothing to restore by the clock."""
        self.poller = poller

    def maybe_restore_messages(self) -> None:
        """There is nothing to restore by the clock."""


class Channel(kombu_redis.Channel):
    """A Redis channel that takes through the process's lease and publishes within a deadline."""

    QoS = QoS
    from_transport_options = (*kombu_redis.Channel.from_transport_options, "lease_s")

    lease_s = 10.0
    #: Every priority has its list; the most urgent is 9. kombu's own has four lists, and the most urgent is 0.
    priority_steps: ClassVar[list[int]] = list(range(10))
    #: How many messages this channel has delivered.
    delivered = 0
    #: For how long there is nothing to do but to listen.
    sleep_s = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        call = _call.get()
        self.leased = False
        self._look_at = 0.0
        self._acknowledge_at: float | None = None
        self._own_line: redis.Redis | None = None
        self._loop_thread = threading.get_ident()
        self._line_pid = 0
        try:
            super().__init__(*args, **kwargs)
        except (redis.TimeoutError, redis.ConnectionError) as error:
            # kombu retries a connection for as long as its policy says; a caller with a deadline has had enough when
            # that is over, or when the server has taken its connection and does not answer.
            hung = call is not None and call.from_outside and isinstance(error, redis.TimeoutError)
            if call is not None and (hung or time.monotonic() >= call.ends_at):
                raise self._unavailable(error) from error
            raise
        self._clock_ahead_s: float | None = None
        self._memory_seen_at = 0.0
        self._warned_at = -_WARN_AGAIN_S

    # -- taking

    @cached_property
    def lease(self) -> Lease:
        """The lease of this process on this broker: of whatever channel, and whatever connection."""
        address = self._address
        lease = _leases.get(address)
        if lease is None or not lease.held_here:
            pool = self._get_lasting_pool()
            lease = Lease(partial(self.Client, connection_pool=pool), length_s=float(self.lease_s), separator=self.sep)
            _leases[address] = lease
        return lease

    @property
    def _address(self) -> str:
        """What tells this broker from others."""
        address: str = self.connection.client.as_uri(include_password=True)
        return address

    def _get_lasting_pool(self) -> redis.ConnectionPool:
        """A pool that outlives this channel, as the lease does."""
        pool: redis.ConnectionPool = self._get_pool()
        return pool

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Consume from `queue`; one consumer that acknowledges makes the whole channel take through the lease."""
        tag = super().basic_consume(queue, no_ack, *args, **kwargs)
        if not no_ack and queue not in self._fanout_queues and not self.leased:
            self.leased = True
            self.lease.begin()
            self.lease.reconcile(self._line)
        return tag

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """One message, or None: through the lease too, unless it need not be acknowledged."""
        if no_ack:
            return super().basic_get(queue, no_ack=True, **kwargs)
        self.lease.begin()
        keys = [self._q_for_pri(queue, priority) for priority in reversed(self.priority_steps)]
        taken, _ = self.lease.exchange(self._line, keys, [DELAYED_PREFIX + queue], 1)
        if not taken:
            return None
        message = self.Message(self._payload(taken[0]), channel=self)
        self.qos.append(message, message.delivery_tag)
        return message

    def take(self) -> None:
        """Deliver what may be delivered now, and send acknowledgements that have waited long enough."""
        now = time.monotonic()
        lease, qos = self.lease, self.qos
        if lease.gives_back:
            self._look_at = 0.0
        room = qos.window - qos.in_hand if self.active_queues and qos.can_consume() else 0
        # What can run at once is fetched at once; beyond that half a window, so that one round trip brings several.
        enough = qos.in_hand < (qos.prefetch_count or 1) or 2 * room >= qos.window
        wanted = room if enough and now >= self._look_at else 0
        if lease.waiting and self._acknowledge_at is None:
            self._acknowledge_at = now + _ACKNOWLEDGE_WITHIN_S
            self._come_back(_ACKNOWLEDGE_WITHIN_S)
        due = self._acknowledge_at is not None and now >= self._acknowledge_at
        if wanted or due or lease.waiting >= ACKNOWLEDGE_AT_ONCE:
            taken, next_due_s = lease.exchange(self._line, self._queue_keys, self._delayed_keys, wanted)
            self._acknowledge_at = None
            if wanted:
                # Fewer than asked for: all queues are empty, and news will come.
                sleep_s = 0.0 if len(taken) == wanted else min(_LOOK_AGAIN_S, next_due_s or _LOOK_AGAIN_S)
                self._look_at = now + sleep_s
                if sleep_s:
                    self._come_back(sleep_s)
            for message in taken:
                self._deliver(message)
            if taken:
                # The pool hands out its jobs at each turn of the loop, this turn perhaps before we had any for it.
                self._knock()
        self.sleep_s = max(0.0, min(self._look_at, self._acknowledge_at or self._look_at) - time.monotonic())

    def tell(self) -> None:
        """Have the broker told of what is settled: by the event loop within milliseconds; without one, now.

        A thread that is not the loop's own (one of the threads pool) wakes it, also to take more.
        """
        if self.closed or not self.connection:
            return  # the lease tells with the next connection
        if self.connection.cycle.call_later is None:
            self.settle()
        elif threading.get_ident() != self._loop_thread:
            self._knock()

    def _knock(self) -> None:
        """Have the event loop, if there is one, turn once more."""
        waker = self.connection.cycle.waker if self.connection else None
        if waker is not None:
            with contextlib.suppress(BlockingIOError, OSError):  # full: it is awake; closed: there is nobody to wake
                waker.send(b"\0")

    def settle(self) -> None:
        """Send acknowledgements and returns now."""
        if self.lease.waiting:
            self.lease.exchange(self._line, (), (), 0)

    def _come_back(self, delay_s: float) -> None:
        """Have the event loop, if there is one, call `take` after this time."""
        call_later = self.connection.cycle.call_later
        if call_later is not None:
            call_later(delay_s, self._take_if_open)

    def _take_if_open(self) -> None:
        if not self.closed:
            self.take()

    def _deliver(self, taken: Taken) -> None:
        self.delivered += 1
        self.connection._deliver(self._payload(taken), taken.key.split(self.sep, 1)[0])

    def _payload(self, taken: Taken) -> dict[str, Any]:
        # kombu's own reader looks for dates and the like in every object; few messages have any.
        read = loads if b"__type__" in taken.message else json.loads
        payload: dict[str, Any] = read(taken.message)
        payload["properties"]["delivery_tag"] = self.lease.tag(taken)
        deliveries = payload.pop("agentlink_deliveries", 0)
        if deliveries:
            # A retry carries the deaths of the attempts before it in its headers.
            payload["headers"][DELIVERIES_HEADER] = payload["headers"].get(DELIVERIES_HEADER, 0) + deliveries
            payload["properties"]["delivery_info"]["redelivered"] = True
        return payload

    def _subscribe(self) -> None:
        super()._subscribe()
        if not self.leased:
            return
        client = self.subclient
        if client.connection._sock is None:
            client.connection.connect()
        self._in_listen = client.connection
        client.subscribe(*(WAKE_PREFIX + queue for queue in self.active_queues))
        self._look_at = 0.0  # what came before we listened

    def _receive(self) -> Any:
        self._look_at = 0.0
        return super()._receive()

    @property
    def _line(self) -> redis.Redis:
        """One connection for all this channel says, kept: making a client costs as much as the round trip."""
        if self._own_line is None or self._line_pid != os.getpid():  # a forked process must not speak on it too
            self._own_line = self.Client(connection_pool=self.pool, single_connection_client=True)
            self._line_pid = os.getpid()
        return self._own_line

    @property
    def _queue_keys(self) -> list[str]:
        queues = self._queue_cycle.consume(len(self.active_queues))
        return [self._q_for_pri(queue, priority) for priority in reversed(self.priority_steps) for queue in queues]

    @property
    def _delayed_keys(self) -> list[str]:
        return [DELAYED_PREFIX + queue for queue in self.active_queues]

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

    # -- publishing

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        if self.closed:
            # kombu 5.7's producer goes on with the channel it had when declaring the queue has made a new connection.
            raise RecoverableConnectionError("channel disconnected")
        # kombu hands the same message in again when it tries again: it is not to be changed.
        properties = dict(message["properties"])
        also = properties.pop(ALSO, [])
        message = message | {"properties": properties}
        if queue in self._expires or "_publish_batch" in kwargs:
            super()._put(queue, message, **kwargs)
            return
        outgoing = self._outgoing(queue, message)
        bundle = _together.get()
        if bundle is None:
            self.publish([outgoing], also)
            return
        bundle.channel = self
        bundle.messages.append(outgoing)
        bundle.also += also
        if len(bundle.messages) >= _TOGETHER_MAX:
            bundle.send()

    def publish(self, messages: Sequence[Outgoing], also: Sequence[Command]) -> None:
        """Queue messages in one step. Under a deadline: once, however often it has to be tried, and in time or never.

        Raises:
            BrokerUnavailable: under a deadline, when the broker does not take them in time.
        """
        # As text: Lua would write a large number as 1e+15.
        args: list[Any] = ["", "", json.dumps([[str(part) for part in command] for command in also])]
        for message in messages:
            args += (message.message, message.due_ms, message.wake)
        keys = ["", *(message.key for message in messages)]
        call = _call.get()
        if call is None or not self.socket_timeout:
            self._publish_script(keys=keys, args=args, client=self._line)
            return
        keys[0], args[1] = call.next_part(), int(_REMEMBER_S * 1000)
        while not self._accepted(call, keys, args):
            time.sleep(_RETRY_S)

    def _accepted(self, call: Call, keys: list[str], args: list[Any]) -> bool:
        """One try; False when there is time for another."""
        try:
            client = self._line
            if call.from_outside:
                self._refuse_when_full(client)
            latest_s = self._server_time_s(client) + self.socket_timeout * _ACCEPT_FRACTION
            args[0] = int(latest_s * 1000)
            accepted = self._publish_script(keys=keys, args=args, client=client)
        except (redis.TimeoutError, redis.ConnectionError) as error:
            waited_enough = call.from_outside and isinstance(error, redis.TimeoutError)
            if waited_enough or time.monotonic() >= call.ends_at:
                raise self._unavailable(error) from error
            self._clock_ahead_s = None  # behind Sentinel the next try may reach another machine, with another clock
            return False
        except _NO_ROOM:
            if call.from_outside or time.monotonic() >= call.ends_at:
                raise
            self._wait_for_room()
            return False
        if not accepted:
            # It came too late by the server's clock; or that clock was set, or the machine slept, since we asked it.
            self._clock_ahead_s = None
            if time.monotonic() >= call.ends_at:
                raise self._unavailable("it came to the call too late")
            return False
        return True

    @cached_property
    def _publish_script(self) -> Script:
        script: Script = self.client.register_script(_PUBLISH)
        return script

    @staticmethod
    def _wait_for_room() -> None:
        logger.warning("the broker has not enough memory left; what comes next waits for some")
        time.sleep(_ROOM_RETRY_S)

    def _refuse_when_full(self, client: redis.Redis) -> None:
        now = time.monotonic()
        if now < self._memory_seen_at + _LOOK_AT_MEMORY_S:
            return
        info: dict[str, int] = client.info("memory")
        used_fraction = info["used_memory"] / info["maxmemory"] if info["maxmemory"] else 0.0
        if used_fraction > _FULL_FRACTION:
            raise self._unavailable(f"it is full: it uses {used_fraction:.0%} of its maxmemory")
        if used_fraction > _FILLING_FRACTION and now > self._warned_at + _WARN_AGAIN_S:
            self._warned_at = now
            logger.warning(
                "the broker uses %.0f %% of its memory; above %.0f %% it takes no new calls",
                used_fraction * 100,
                _FULL_FRACTION * 100,
            )
        self._memory_seen_at = now

    def _outgoing(self, queue: str, message: dict[str, Any]) -> Outgoing:
        key = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))
        eta = message["headers"].get("eta") if message["headers"].get("task") else None
        if eta is None:
            return Outgoing(key=key, message=dumps(message), due_ms="", wake=WAKE_PREFIX + queue)
        due_ms = str(int(datetime.fromisoformat(eta).timestamp() * 1000))
        # The list it belongs to travels with it: one sorted set a queue holds all priorities in the order of time.
        return Outgoing(
            key=DELAYED_PREFIX + queue, message=f"{key}\0{dumps(message)}", due_ms=due_ms, wake=WAKE_PREFIX + queue
        )

    def _server_time_s(self, client: redis.Redis) -> float:
        """The server's clock now: asked once, then carried on with ours, since the two machines' clocks may differ."""
        if self._clock_ahead_s is None:
            seconds, microseconds = client.time()
            self._clock_ahead_s = seconds + microseconds / 1e6 - time.monotonic()
        return time.monotonic() + self._clock_ahead_s

    def _unavailable(self, reason: object) -> BrokerUnavailable:
        return BrokerUnavailable(self.connection.client.as_uri(), str(reason))

    # -- queues

    def _queue_bind(self, *args: Any, **kwargs: Any) -> None:
        call = _call.get()
        while True:
            try:
                super()._queue_bind(*args, **kwargs)
                return
            except _NO_ROOM:
                if call is None or call.from_outside or time.monotonic() >= call.ends_at:
                    raise
                self._wait_for_room()

    def _purge(self, queue: str) -> int:
        with self.conn_or_acquire() as client:
            delayed: int = client.zcard(DELAYED_PREFIX + queue)
            client.delete(DELAYED_PREFIX + queue)
        return delayed + int(super()._purge(queue))

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        with self.conn_or_acquire() as client:
            client.delete(DELAYED_PREFIX + queue)
        super()._delete(queue, *args, **kwargs)


class SentinelConnection(redis.sentinel.SentinelManagedConnection):
    """A connection that asks where the master is each time it is made.

    redis-py 8.1 asks only when a connection leaves its pool; one that is kept would knock at the dead master for ever.
    """

    def connect(self) -> None:
        """Connect to the master, if not connected."""
        try:
            super().connect()  # type: ignore[no-untyped-call]
        except redis.sentinel.MasterNotFoundError:  # it prints each client, with all that can be set of one
            master = self.connection_pool.service_name
            raise redis.ConnectionError(f"no Sentinel that answers knows a master {master!r}") from None

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Connect if need be, and send."""
        self.connect()
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]


class SentinelChannel(Channel, kombu_redis.SentinelChannel):
    """The same for a server behind Sentinel: each connection is made to whichever is the master then."""

    from_transport_options = tuple(
        dict.fromkeys((*Channel.from_transport_options, *kombu_redis.SentinelChannel.from_transport_options))
    )

    connection_class = SentinelConnection
    _sentinel_manager: Any

    @property
    def _address(self) -> str:
        """All of the Sentinels: kombu turns from one to the next, and the broker they know stays the same."""
        return "|".join([*(self.connection.client.alt or [super()._address]), self.master_name])

    def _get_lasting_pool(self) -> redis.ConnectionPool:
        # kombu closes the connections to the Sentinels of the pool it made last, when it closes the channel.
        channels_own = self._sentinel_manager
        try:
            return super()._get_lasting_pool()
        finally:
            self._sentinel_manager = channels_own


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


class SentinelTransport(Transport):
    """The same for a server behind Sentinel."""

    Channel = SentinelChannel
    default_port = kombu_redis.SentinelTransport.default_port


def _hear(ear: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        ear.recv(4096)


def register() -> None:
    """Make this the transport of every `redis://`, `redis+socket://` and `sentinel://` URL in this process.

    By kombu's table of names, not by Celery's `broker_transport`: a URL with a `+` in it ignores that setting, and so
    do the connections of kombu's pools.
    """
    for scheme, transport in (("redis", Transport), ("rediss", Transport), ("sentinel", SentinelTransport)):
        kombu_transport.TRANSPORT_ALIASES[scheme] = f"{__name__}:{transport.__name__}"
        kombu_transport._transport_cache.pop(scheme, None)
