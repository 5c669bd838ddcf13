"""What a step says on its way to the broker: gathered, and sent by a thread or, where there is too much, by the step.

A call costs no round trip. What has been said is in the broker a moment later, or at the latest when the step ends,
before its result is: parts of its output wait for a broker that is away or full, log lines and progress don't.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import redis

from agentlink.broker import streams
from agentlink.broker.errors import ChunksNotSent, reason_of, refuses_to_write
from agentlink.broker.streams import Said

logger = logging.getLogger(__name__)

#: Between two times that what was said is sent.
SEND_EVERY_S = 0.05
#: With so much in hand the step sends it itself, and so is no faster than the broker.
_ITEMS_MAX, _BYTES_MAX = 500, 256_000
# A log line waits at most so long for room.
_LOG_WAITS_S = 1.0
_LOOK_AGAIN_S = 0.005
_PAUSE_MAX_S = 5.0
# The thread's stack: it counts for what the step may take, and eight megabytes are a lot for some.
_STACK_BYTES = 512 * 1024

_starting = threading.Lock()


@dataclass(slots=True)
class _Gathered:
    items: list[str] = field(default_factory=list)
    size_bytes: int = 0
    must_arrive: bool = False
    fraction: float | None = None
    message: str | None = None

    @property
    def full(self) -> bool:
        return len(self.items) >= _ITEMS_MAX or self.size_bytes >= _BYTES_MAX

    @property
    def empty(self) -> bool:
        return not self.items and self.fraction is None


class Outlet:
    """What one attempt of a step says. Its thread begins with the first word, and ends with `close`."""

    def __init__(self, send: Callable[[Said], str], name: str) -> None:
        """`send` tells the broker, and is called by one thread at a time; `name` is for the log."""
        self._send, self._name = send, name
        self._gathering = threading.Lock()
        self._sending = threading.Lock()
        self._gathered = _Gathered()
        self._unsent: Said | None = None
        self._number = 0
        self._failing = self._warned = False
        self._closing = False
        #: That there is something to be sent; that it is not to wait for company.
        self._news, self._hurry = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def emit(self, chunk_json: str, patience_s: float) -> None:
        """Say a part of the step's output; it waits up to `patience_s` where nothing more can be gathered.

        Raises:
            ChunksNotSent: the broker took nothing for so long.
        """
        self._gather(streams.item(streams.EMIT, chunk_json), must_arrive=True)
        if self._gathered.full:
            self.flush(patience_s)

    def log(self, line_json: str) -> None:
        """Say a line of the step's log."""
        ends_at = time.monotonic() + _LOG_WAITS_S
        while self._gathered.full:
            if self._failing or time.monotonic() > ends_at:
                self._failing = True  # until something is sent: the next line does not wait as well
                self._warn("the broker does not take them")
                return
            if self._thread is None:
                self._try()
            else:  # which may be stuck with a broker that has stopped answering: the step is not to be
                self._hurry.set()
                time.sleep(_LOOK_AGAIN_S)
        self._gather(streams.item(streams.LOG, line_json), must_arrive=False)

    def progress(self, fraction: float, message: str | None) -> None:
        """Say how far the step has come: only the latest counts."""
        with self._gathering:
            self._gathered.fraction, self._gathered.message = fraction, message
        self._wake()

    def flush(self, patience_s: float) -> None:
        """Send everything that was said.

        Raises:
            ChunksNotSent: the broker has not taken a part of the step's output for `patience_s`.
        """
        ends_at = time.monotonic() + patience_s
        pause_s = 0.1
        while self._unsent is not None or not self._gathered.empty:
            if (error := self._try()) is None:
                continue
            lasts = isinstance(error, redis.ResponseError) and not refuses_to_write(error)
            if lasts or time.monotonic() >= ends_at:
                raise ChunksNotSent(self._name, reason_of(error)) from error
            if self._unsent is not None:
                logger.warning("%s waits with its output, trying again in %.1f s: %s", self._name, pause_s, error)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    def close(self, patience_s: float) -> None:
        """Send everything, and end the thread.

        Raises:
            ChunksNotSent: see `flush`.
        """
        self._closing = True
        self._news.set()
        self._hurry.set()
        self.flush(patience_s)
        if self._thread is not None:
            self._thread.join()

    def _gather(self, item: str, *, must_arrive: bool) -> None:
        with self._gathering:
            # In this order: a time limit may end it between any two lines, and what is there must be whole.
            self._gathered.must_arrive |= must_arrive
            self._gathered.size_bytes += len(item)
            self._gathered.items.append(item)
        self._wake()

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = _started(self._keep_sending)
        if not self._news.is_set():
            self._news.set()

    def _keep_sending(self) -> None:
        pause_s = SEND_EVERY_S
        while not self._closing:
            self._news.wait()
            self._news.clear()
            if self._try() is None:
                pause_s = SEND_EVERY_S
            else:  # whoever closes finds out what is wrong
                pause_s = min(2 * pause_s, _PAUSE_MAX_S)
                self._news.set()
            self._hurry.wait(pause_s)
            self._hurry.clear()

    def _try(self) -> Exception | None:
        """Send what was said so far; what has gone wrong, if anything."""
        with self._sending:
            self._take()
            if (said := self._unsent) is None:
                return None
            try:
                outcome = self._send(said)
            except (redis.RedisError, OSError) as error:
                self._failing = True
                if not said.must_arrive:
                    self._unsent = None
                    self._warn(str(error))
                return error
            self._unsent, self._failing = None, False
            if outcome == "superseded":
                self._warn("another worker has the step by now")
            return None

    def _take(self) -> None:
        with self._gathering:
            if self._unsent is not None or self._gathered.empty:
                return
            said = Said(
                number=self._number + 1,
                items=self._gathered.items,
                fraction=self._gathered.fraction,
                message=self._gathered.message,
                must_arrive=self._gathered.must_arrive,
            )
            nothing = _Gathered()
            # At once: no time limit comes in between, and nothing is lost or sent twice.
            self._unsent, self._gathered, self._number = said, nothing, said.number

    def _warn(self, reason: str) -> None:
        """Once."""
        if not self._warned:
            self._warned = True
            logger.warning("log lines or progress of %s are lost: %s", self._name, reason)


def _started(target: Callable[[], None]) -> threading.Thread | None:
    """A thread with a small stack: the size is the whole process's for a moment. None where there is no room for one.

    Then what is said is sent when there is much of it, and at the end.
    """
    thread = threading.Thread(target=target, name="outlet", daemon=True)
    with _starting:
        before = threading.stack_size(_STACK_BYTES)
        try:
            thread.start()
        except RuntimeError:
            return None
        finally:
            threading.stack_size(before)
    return thread
