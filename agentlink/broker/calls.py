"""Calls on their way to the broker: until when they may be tried, and what goes together in one step."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from agentlink.broker.fanout import Tally, checked_breadth

Command = Sequence[Any]

#: The message property that carries commands to run in the same step that queues the message.
ALSO = "agentlink_also"
#: A command of this name is an event: its kind, and its fields as `event_log.encoded` makes them.
TELL = "TELL"
#: The message property that makes a call be accepted once, however often it is made: a key of its own, and for how long
#: (ms) that is remembered.
ONCE = "agentlink_once"
#: The message property that holds a message back: a hash's key and the field that keeps it there, as `queue's key, NUL,
#: channel of its news, NUL, message`, until some script puts it into its queue.
HELD = "agentlink_held"
#: The message header that tells how often the message's task was started by a worker that ended before it did.
DELIVERIES_HEADER = "agentlink_deliveries"
#: The message header that tells how often its task was evicted, and how much memory it is to have since then.
EVICTED_HEADER = "agentlink_evicted"
#: The message header that tells when it was queued, by the broker's clock (seconds since 1970).
QUEUED_AT_HEADER = "agentlink_queued_at"
#: The most messages one script call queues.
TOGETHER_MAX = 500

current_call: ContextVar[Call | None] = ContextVar("agentlink_call", default=None)
current_bundle: ContextVar[Bundle | None] = ContextVar("agentlink_together", default=None)


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
    """A message on its way: where it goes, its JSON, when it is due (ms, '' for now), who is told.

    One that is held back goes into a hash, and has the name of its field in place of when it is due.
    `also` are commands to run with it, `tally` is what it counts for, `once` what tells that it was accepted before.
    """

    key: str
    message: str
    due_ms: str
    wake: str
    also: Sequence[Command] = ()
    tally: Tally | None = None
    once: tuple[str, int] | None = None


class Publisher(Protocol):
    """What a bundle is sent by."""

    def publish(self, messages: Sequence[Outgoing], also: Sequence[Command], wanted: int = 0) -> None:
        """Queue messages in one step, unless there would be too many steps with `wanted` more (0: then too)."""


@dataclass
class Bundle:
    """Messages that reach the broker in one step; several, where they are very many."""

    messages: list[Outgoing] = field(default_factory=list)
    channel: Publisher | None = None
    producer: Any = None
    #: Commands to run in the step that sends what is gathered next: the sizes of the chords it belongs to.
    also: list[Command] = field(default_factory=list)
    #: What has been stored of their arguments, by identity, and what belongs to whom by now; see `arguments`.
    seen: dict[int, Any] = field(default_factory=dict)
    bound: set[tuple[str, ...]] = field(default_factory=set)

    def add(self, message: Outgoing) -> None:
        """Gather one more. What can be refused is kept until all of it is known: it is accepted whole or not at all."""
        if message.once:
            self.send()  # what was known before would be taken for known with it
        self.messages.append(message)
        if message.once:
            self.send()
        elif message.tally and message.tally.refusable:
            checked_breadth(message.tally, len(self.messages))
        elif len(self.messages) >= TOGETHER_MAX:
            self.send()

    def send(self) -> None:
        """Send what was gathered."""
        messages, self.messages = self.messages, []
        if self.channel is None:
            return
        also, self.also = self.also, []
        wanted = wanted_by(messages)
        for start in range(0, len(messages), TOGETHER_MAX):
            # All are asked for with the first, and each counts as it is sent: killed in between, the rest don't.
            part = messages[start : start + TOGETHER_MAX]
            self.channel.publish(part, [*also, *(command for message in part for command in message.also)], wanted)
            wanted, also = 0, []


def wanted_by(messages: Sequence[Outgoing]) -> int:
    """How many of them can be refused."""
    return sum(message.tally is not None and message.tally.refusable for message in messages)


@contextlib.contextmanager
def deadline(timeout_s: float, *, from_outside: bool = True) -> Iterator[Call]:
    """Give the call made inside `timeout_s` to reach a broker; the last try may take the socket's timeout on top.

    Inside another deadline, that one holds.
    """
    if (outer := current_call.get()) is not None:
        yield outer
        return
    call = Call(time.monotonic() + timeout_s, from_outside)
    token = current_call.set(call)
    try:
        yield call
    finally:
        current_call.reset(token)


@contextlib.contextmanager
def together(producer: Any = None) -> Iterator[None]:
    """Send the messages published inside in one step, at the end; should the block fail, none of them.

    `producer` is what they are published with.
    """
    if current_bundle.get() is not None:
        yield
        return
    bundle = Bundle(producer=producer)
    token = current_bundle.set(bundle)
    try:
        yield
    finally:
        current_bundle.reset(token)
    bundle.send()
