"""How a channel takes messages: several at a time through the process's lease, woken by news instead of polling.

Private parts of `kombu.transport.redis` 5.7 used here and held by a contract test: of `Channel` `_subscribe`,
`_receive`, `_receive_one`, `_get_pool`, `_q_for_pri`, `_queue_cycle`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import redis
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.json import loads

from agentlink.broker import along
from agentlink.broker.calls import DELIVERIES_HEADER, EVICTED_HEADER, QUEUED_AT_HEADER
from agentlink.broker.errors import refuses_to_write
from agentlink.broker.lease import ACKNOWLEDGE_AT_ONCE, DELAYED_PREFIX, RUNS_STEP, WAKE_PREFIX, Lease, Taken
from agentlink.broker.poller import LOOK_AGAIN_S

logger = logging.getLogger(__name__)

# Acknowledgements may wait this long for company.
_ACKNOWLEDGE_WITHIN_S = 0.005
# With no limit on what may be prefetched, and at most.
_WINDOW_MAX = 64
# A worker holds what it has lately finished in this time: many short tasks, and no long one more than it can run.
_WINDOW_S = 0.03

_leases: dict[str, Lease] = {}


class QoS(virtual.QoS):
    """What a channel has delivered. The broker's side of it is the process's lease."""

    def __init__(self, channel: TakingChannel, prefetch_count: int = 0) -> None:
        super().__init__(channel, prefetch_count)
        self._finished_at: deque[float] = deque(maxlen=_WINDOW_MAX)
        #: How many more are worth having in hand, to find one that fits.
        self.look_ahead: Callable[[], int] = int

    @property
    def window(self) -> int:
        """How many messages may be in hand: the prefetch count, or what is finished in a moment if that is more."""
        if not self.prefetch_count:
            return _WINDOW_MAX
        since = time.monotonic() - _WINDOW_S
        while self._finished_at and self._finished_at[0] < since:
            self._finished_at.popleft()
        prefetch: int = self.prefetch_count
        return max(prefetch, len(self._finished_at)) + self.look_ahead()

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


class TakingChannel(kombu_redis.Channel):
    """The half of our channel that takes."""

    QoS = QoS

    lease_s = 10.0
    #: How many messages this channel has delivered.
    delivered = 0
    #: For how long there is nothing to do but to listen.
    sleep_s = 0.0
    #: Whether a consumer that acknowledges makes it take through the lease.
    leased = False

    @property
    def line(self) -> redis.Redis:
        """One connection for all this channel says."""
        raise NotImplementedError

    #: Called with the id of a task that was revoked, before its message is delivered.
    on_revoked: Callable[[str], None] = staticmethod(lambda _: None)

    _runs_first = False
    _news = 0
    _look_at = 0.0
    _acknowledge_at: float | None = None
    #: Until when a broker that has refused to write is left alone; None: it has not.
    _left_alone_until: float | None = None
    _loop_thread = 0

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
            self.lease.reconcile(self.line)
        return tag

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """One message, or None: through the lease too; one that need not be acknowledged is done with at once."""
        self.lease.begin()
        taken, _ = self.lease.exchange(self.line, self._lists([queue]), [DELAYED_PREFIX + queue], 1)
        if not taken:
            return None
        message = self.Message(self._payload(taken[0]), channel=self)
        if no_ack:
            self.lease.acknowledge(message.delivery_tag)
            self.settle()
        else:
            self.qos.append(message, message.delivery_tag)
        return message

    def take(self) -> None:
        """Deliver what may be delivered now, and send acknowledgements that have waited long enough."""
        now = time.monotonic()
        if now < (self._left_alone_until or 0.0):
            return
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
            try:
                taken, next_due_s = lease.exchange(self.line, self._queue_keys, self._delayed_keys, wanted)
            except redis.ResponseError as error:
                self._leave_alone(error)
                return
            self._left_alone_until = self._acknowledge_at = None
            if wanted:
                # Fewer than asked for: all queues are empty, and news will come.
                sleep_s = 0.0 if len(taken) == wanted else min(LOOK_AGAIN_S, next_due_s or LOOK_AGAIN_S)
                self._look_at = now + sleep_s
                if sleep_s:
                    self._come_back(sleep_s)
            for message in taken:
                self._deliver(message)
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
            self.wake()

    def wake(self) -> None:
        """Have the event loop, if there is one, turn once more."""
        waker = self.connection.cycle.waker if self.connection else None
        if waker is not None:
            with contextlib.suppress(BlockingIOError, OSError):  # full: it is awake; closed: there is nobody to wake
                waker.send(b"\0")

    def settle(self) -> None:
        """Send acknowledgements and returns now."""
        if self.lease.waiting:
            try:
                self.lease.exchange(self.line, (), (), 0)
            except redis.ResponseError as error:
                self._leave_alone(error)

    def _leave_alone(self, error: redis.ResponseError) -> None:
        """Ask a broker that has refused to write again a moment later: a new connection would not help.

        Raises:
            redis.ResponseError: it was something else.
        """
        if not refuses_to_write(error):
            raise error
        if self._left_alone_until is None:
            logger.warning("the broker takes nothing, and nothing can be taken from it: %s (said once)", error)
        self._left_alone_until = time.monotonic() + LOOK_AGAIN_S
        self.sleep_s = LOOK_AGAIN_S
        self._come_back(LOOK_AGAIN_S)

    def maybe_refresh_binding_expiry(self) -> None:
        """kombu's, tried once a second: that the broker takes nothing is not worth a traceback each time."""
        try:
            super().maybe_refresh_binding_expiry()
        except redis.ResponseError as error:
            if not refuses_to_write(error):
                raise
            logger.debug("bindings not refreshed: %s", error)

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
        if self.qos.in_hand > self.qos.prefetch_count > 0:  # others wait here: its result may wait for theirs
            payload["headers"][along.HEADER] = True
        if payload.pop("agentlink_revoked", None):
            self.on_revoked(payload["headers"]["id"])
        if evicted := payload.pop("agentlink_evicted", None):
            payload["headers"][EVICTED_HEADER] = evicted
        if queued_at := payload.pop("queued_at", None):
            payload["headers"][QUEUED_AT_HEADER] = queued_at
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
        """Read news, once what it tells of has been taken: reading it takes as long as asking the broker."""
        self._look_at = 0.0
        if self.leased:
            self.take()
        self._news = 0
        try:
            received = super()._receive()
        except redis.ResponseError as error:  # the answer to a PING, by which kombu finds out whether the line holds
            self._leave_alone(error)
            self.subclient.health_check_response_counter = 0
            return False
        if self._news > 1:  # the first had come before we took
            self._look_at = 0.0
        return received

    def _receive_one(self, client: Any) -> Any:
        self._news += 1
        return super()._receive_one(client)

    @property
    def _queue_keys(self) -> list[str]:
        return self._lists(self._queue_cycle.consume(len(self.active_queues)))

    def _lists(self, queues: Sequence[str]) -> list[str]:
        """All lists of these queues, in the order in which to take from them.

        Of the same priority, runs come first every other time: neither a run's thousands of steps nor thousands of
        other calls keep the others waiting.
        """
        self._runs_first = not self._runs_first
        steps = (RUNS_STEP, 0) if self._runs_first else (0, RUNS_STEP)
        return [
            self._q_for_pri(queue, priority + step)
            for priority in reversed(range(RUNS_STEP))
            for step in steps
            for queue in queues
        ]

    @property
    def _delayed_keys(self) -> list[str]:
        return [DELAYED_PREFIX + queue for queue in self.active_queues]
