"""How a channel puts messages into queues: once, in time or never, several in one step, for later where asked.

Private parts of `kombu.transport.redis` 5.7 used here and held by a contract test: of `Channel` `_put`, `_purge`,
`_delete`, `_expires`, `_queue_bind`, `_q_for_pri`, `_get_message_priority`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from importlib import resources
from typing import Any

import redis
from amqp.exceptions import RecoverableConnectionError
from kombu.transport import redis as kombu_redis
from kombu.utils.json import dumps
from redis.commands.core import Script

from agentlink.broker import fanout
from agentlink.broker.calls import ALSO, HELD, ONCE, Call, Command, Outgoing, current_bundle, current_call, wanted_by
from agentlink.broker.errors import BrokerUnavailable, Overtaken, reason_of, refuses_to_write
from agentlink.broker.event_log import EVENTS
from agentlink.broker.fanout import COUNTING, TALLY
from agentlink.broker.lease import DELAYED_PREFIX, LIMITS, RUNS_STEP, TURNS, WAKE_PREFIX
from agentlink.broker.limits import LIMIT, Limit

logger = logging.getLogger(__name__)

_SCRIPTS = resources.files(__package__).joinpath("scripts")
_PUBLISH = TURNS + COUNTING + EVENTS + _SCRIPTS.joinpath("publish.lua").read_text("utf-8")
_PURGE = LIMITS + _SCRIPTS.joinpath("purge.lua").read_text("utf-8")
#: Of the time a caller waits for an answer, the share in which the server may still accept the call: an answer sent at
#: the end of it reaches a caller that is still there.
_ACCEPT_FRACTION = 0.75
# How long the server remembers that it has accepted a call, in case its answer got lost.
_REMEMBER_S = 10.0
_RETRY_S = 0.05
_ROOM_RETRY_S = 1.0
#: Above this share of its memory the broker takes no new calls from outside: workers need the rest to finish.
FULL_FRACTION = 0.95
_FILLING_FRACTION = 0.8
_WARN_AGAIN_S = 60.0
# So often its memory is looked at, and while it is half empty; the server itself refuses what is really too much.
_LOOK_AT_MEMORY_S = 0.5
_LOOK_AT_MEMORY_EASY_S = 2.0
_EASY_FRACTION = 0.5


class PublishingChannel(kombu_redis.Channel):
    """The half of our channel that publishes."""

    @property
    def line(self) -> redis.Redis:
        """One connection for all this channel says."""
        raise NotImplementedError

    _clock_ahead_s: float | None = None
    _look_at_memory_at = 0.0
    _warned_at = -_WARN_AGAIN_S

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        if self.closed:
            # kombu 5.7's producer goes on with the channel it had when declaring the queue has made a new connection.
            raise RecoverableConnectionError("channel disconnected")
        # kombu hands the same message in again when it tries again: it is not to be changed.
        properties = dict(message["properties"])
        also, tally, once = properties.pop(ALSO, []), properties.pop(TALLY, None), properties.pop(ONCE, None)
        limit, held = properties.pop(LIMIT, None), properties.pop(HELD, None)
        message = message | {"properties": properties}
        if queue in self._expires or "_publish_batch" in kwargs:
            super()._put(queue, message, **kwargs)
            return
        outgoing = replace(self._outgoing(queue, message, limit, held), also=also, tally=tally, once=once)
        bundle = current_bundle.get()
        if bundle is None:
            self.publish([outgoing], also, wanted_by([outgoing]))
            return
        bundle.channel = self
        bundle.add(outgoing)

    def publish(self, messages: Sequence[Outgoing], also: Sequence[Command], wanted: int = 0) -> None:
        """Queue messages in one step. Under a deadline: once, however often it has to be tried, and in time or never.

        Raises:
            BrokerUnavailable: under a deadline, when the broker does not take them in time.
            Overtaken: one of `also` expects something else than is there.
            FanOutExceeded: there would be more steps than their tree may have, were as many added as are `wanted`.
        """
        counted = [message.tally for message in messages if message.tally]
        root_id = counted[0].root_id if counted else ""  # what goes together, one task has sent, or one agent
        counting = fanout.counting_arguments(root_id, wanted, counted) if counted else ""
        # As text: Lua would write a large number as 1e+15.
        args: list[Any] = ["", "", json.dumps([[str(part) for part in command] for command in also]), counting]
        for message in messages:
            args += (message.message, message.due_ms, message.wake)
        keys = ["", *(message.key for message in messages)]
        once = messages[-1].once if messages else None
        if once:
            keys[0], args[1] = once
        call = current_call.get()
        if call is None or not self.socket_timeout:
            _raise_if_refused(self._publish_script(keys=keys, args=args, client=self.line), root_id)
            return
        if not once:
            keys[0], args[1] = call.next_part(), int(_REMEMBER_S * 1000)
        while not (accepted := self._accepted(call, keys, args)):
            time.sleep(_RETRY_S)
        _raise_if_refused(accepted, root_id)

    def _accepted(self, call: Call, keys: list[str], args: list[Any]) -> Any:
        """One try: what the script has said, or False when there is time for another."""
        try:
            client = self.line
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
        except redis.ResponseError as error:
            if not refuses_to_write(error):
                raise
            if call.from_outside or time.monotonic() >= call.ends_at:
                raise self._unavailable(reason_of(error)) from error
            self._wait_for_room(error)
            return False
        if not accepted:
            # It came too late by the server's clock; or that clock was set, or the machine slept, since we asked it.
            self._clock_ahead_s = None
            if time.monotonic() >= call.ends_at:
                raise self._unavailable("it came to the call too late")
            return False
        return accepted

    @cached_property
    def _publish_script(self) -> Script:
        script: Script = self.client.register_script(_PUBLISH)
        return script

    @staticmethod
    def _wait_for_room(error: Exception) -> None:
        logger.warning("the broker has no room (%s); what comes next waits for some", error)
        time.sleep(_ROOM_RETRY_S)

    def _refuse_when_full(self, client: redis.Redis) -> None:
        now = time.monotonic()
        if now < self._look_at_memory_at:
            return
        info: dict[str, int] = client.info("memory")
        used_fraction = info["used_memory"] / info["maxmemory"] if info["maxmemory"] else 0.0
        if used_fraction > FULL_FRACTION:
            raise self._unavailable(f"it is full: it uses {used_fraction:.0%} of its maxmemory")
        if used_fraction > _FILLING_FRACTION and now > self._warned_at + _WARN_AGAIN_S:
            self._warned_at = now
            logger.warning(
                "the broker uses %.0f %% of its memory; above %.0f %% it takes no new calls",
                used_fraction * 100,
                FULL_FRACTION * 100,
            )
        self._look_at_memory_at = now + (
            _LOOK_AT_MEMORY_S if used_fraction > _EASY_FRACTION else _LOOK_AT_MEMORY_EASY_S
        )

    def _outgoing(
        self, queue: str, message: dict[str, Any], limit: Limit | None, held: Sequence[str] | None
    ) -> Outgoing:
        headers, text = message["headers"], dumps(message)
        priority = self._get_message_priority(message, reverse=False)
        key = self._key(queue, priority, headers)
        if limit is not None:
            text = limit.marked(text, headers["id"], priority)
        if held is not None:
            hash_key, field = held
            kept = f"{key}\0{WAKE_PREFIX}{queue}\0{text}"
            return Outgoing(key=hash_key, message=kept, due_ms=field, wake=WAKE_PREFIX + queue)
        eta = headers.get("eta") if headers.get("task") else None
        if eta is None:
            return Outgoing(key=key, message=text, due_ms="", wake=WAKE_PREFIX + queue)
        due_ms = str(int(datetime.fromisoformat(eta).timestamp() * 1000))
        # The key it belongs under travels with it: one sorted set a queue holds all priorities in the order of time.
        return Outgoing(key=DELAYED_PREFIX + queue, message=f"{key}\0{text}", due_ms=due_ms, wake=WAKE_PREFIX + queue)

    def _key(self, queue: str, priority: int, headers: dict[str, Any]) -> str:
        """Where a message waits. All that one call has led to is one run here: it waits in turn with others."""
        root_id = headers.get("root_id")
        if not root_id or root_id == headers.get("id"):
            key: str = self._q_for_pri(queue, priority)
            return key
        return f"{self._q_for_pri(queue, priority + RUNS_STEP)}\1{root_id}"

    def _server_time_s(self, client: redis.Redis) -> float:
        """The server's clock now: asked once, then carried on with ours, since the two machines' clocks may differ."""
        if self._clock_ahead_s is None:
            seconds, microseconds = client.time()
            self._clock_ahead_s = seconds + microseconds / 1e6 - time.monotonic()
        return time.monotonic() + self._clock_ahead_s

    def _unavailable(self, reason: object) -> BrokerUnavailable:
        return BrokerUnavailable(self.connection.client.as_uri(), str(reason))

    def _queue_bind(self, *args: Any, **kwargs: Any) -> None:
        call = current_call.get()
        while True:
            try:
                super()._queue_bind(*args, **kwargs)
                return
            except redis.ResponseError as error:
                waits = call is not None and not call.from_outside and time.monotonic() < call.ends_at
                if not waits or not refuses_to_write(error):
                    raise
                self._wait_for_room(error)

    def _purge(self, queue: str) -> int:
        lists = [self._q_for_pri(queue, step) for step in self.priority_steps]
        with self.conn_or_acquire() as client:
            return int(client.eval(_PURGE, 1 + len(lists), DELAYED_PREFIX + queue, *lists, queue))

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        super()._delete(queue, *args, **kwargs)
        self._purge(queue)


def _raise_if_refused(accepted: Any, root_id: str) -> None:
    if accepted == [b"overtaken"]:
        raise Overtaken
    if isinstance(accepted, list):
        raise fanout.exceeded(root_id, accepted)
