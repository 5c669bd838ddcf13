"""Calls on their way to the broker: until when they may be tried, and what goes together in one step."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

Command = Sequence[Any]

#: The message property that carries commands to run in the same step that queues the message.
ALSO = "agentlink_also"
#: The message header that tells how often the message's task was started by a worker that ended before it did.
DELIVERIES_HEADER = "agentlink_deliveries"

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
    """A message on its way: where it goes, its JSON, when it is due (ms, '' for now), and who is told."""

    key: str
    message: str
    due_ms: str
    wake: str


class Publisher(Protocol):
    """What a bundle is sent by."""

    def publish(self, messages: Sequence[Outgoing], also: Sequence[Command]) -> None:
        """Queue messages in one step."""


@dataclass
class Bundle:
    """Messages that reach the broker in one step."""

    messages: list[Outgoing] = field(default_factory=list)
    also: list[Command] = field(default_factory=list)
    channel: Publisher | None = None

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
def together() -> Iterator[None]:
    """Send the messages published inside in one step, at the end; should the block fail, none of them."""
    if current_bundle.get() is not None:
        yield
        return
    bundle = Bundle()
    token = current_bundle.set(bundle)
    try:
        yield
    finally:
        current_bundle.reset(token)
    bundle.send()
