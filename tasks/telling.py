"""What a task's body may tell while it runs: how far it has come, lines of its log, parts of its output."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

from kombu.utils.json import dumps

from agentlink.broker import streams
from agentlink.broker.errors import ChunksNotSent
from agentlink.broker.outlet import Outlet
from agentlink.broker.results import PATIENCE_S
from agentlink.masking import masked_text
from agentlink.settings import load
from tasks.errors import ChunkTooLarge

logger = logging.getLogger(__name__)

#: The most JSON one call of `emit` takes.
CHUNK_MAX_BYTES = 256_000
#: A longer log line is cut.
LINE_MAX_CHARS = 4_000

_OUTLET = "agentlink_outlet"

# The request whose body runs in this context, and its thread: threads that were started with a copy of the context tell
# for it.
_body: ContextVar[tuple[Any, int] | None] = ContextVar("agentlink_body", default=None)
# The threads in which bodies run now.
_bodies: set[int] = set()
_making = threading.Lock()
_warned: set[str] = set()


class Telling:
    """What `BaseTask` gets from here. Of a task that was called as a function, or in no run, the log gets to know.

    A thread that a task has started tells for it if it has a copy of its context, which `asyncio.to_thread` gives it,
    and `threading.Thread(target=contextvars.copy_context().run, args=(function,))`.
    """

    def progress(self, fraction: float, message: str | None = None) -> None:
        """Say how much of the step is done, from 0 to 1, and what it is at; cheap enough for every turn of a loop.

        The run's own progress counts it. It never fails and never waits: should the broker be away, it is lost.
        """
        fraction = min(1.0, max(0.0, fraction))
        if (outlet := self._outlet()) is not None:
            outlet.progress(fraction, None if message is None else str(message))
        else:
            logger.info("%s: %.0f %% %s", self._own_name(), 100 * fraction, message or "")

    def log(self, line: str, *args: object) -> None:
        """Add a line to the run's log, and to the worker's; `args` are filled in as `logging` does.

        What looks like a secret in it (`token=…`) is masked. It never fails: should the broker be away, the run's log
        misses it.
        """
        text = masked_text(_filled(str(line), args))
        logger.info("%s: %s", self._own_name(), text)
        if (outlet := self._outlet()) is not None:
            cut = text if len(text) <= LINE_MAX_CHARS else text[:LINE_MAX_CHARS] + "…"
            outlet.log(dumps(cut))

    def emit(self, chunk: Any) -> None:
        """Put out a part of the step's output, text or anything JSON can hold: `run.stream()` yields it within moments.

        What was emitted arrives in order, and before the step ends. It waits for a broker that is away or full.

        Raises:
            ChunkTooLarge: it has more than `CHUNK_MAX_BYTES` as JSON.
            ChunksNotSent: the broker has taken nothing for five minutes.
        """
        text: str = dumps(chunk)
        if len(text) > CHUNK_MAX_BYTES:
            raise ChunkTooLarge(self._own_name(), len(text), CHUNK_MAX_BYTES)
        if (outlet := self._outlet()) is not None:
            outlet.emit(text, PATIENCE_S)
        else:
            logger.debug("%s: emits %s", self._own_name(), text)

    def _own_name(self) -> str:
        task: Any = self
        return str(task.name)

    def _outlet(self) -> Outlet | None:
        """Where the step that runs tells it; None outside any run."""
        task: Any = self
        request = task.request if task.request_stack.top is not None else self._request_elsewhere() or task.request
        with _making:
            return self._outlet_of(request)

    def _request_elsewhere(self) -> Any:
        """The request of the body that has started this thread, if that is known."""
        own = threading.get_ident()
        if (body := _body.get()) is not None:
            return body[0] if body[1] != own else None
        if _bodies and own not in _bodies and self._own_name() not in _warned:
            _warned.add(self._own_name())
            logger.warning(
                "%s tells something in a thread of which no step is known, so its run does not get it; start the "
                "thread with contextvars.copy_context().run",
                self._own_name(),
            )
        return None

    def _outlet_of(self, request: Any) -> Outlet | None:
        task: Any = self
        if (known := vars(request).get(_OUTLET, False)) is not False:
            outlet: Outlet | None = known
            return outlet
        speaker = streams.speaker_of(request, task.name, late=bool(task.acks_late))
        made = None
        if speaker is not None:
            send = partial(_send, task.backend.client, speaker, load().stream_bytes)
            made = Outlet(send, f"{task.name}[{request.id}]")
        setattr(request, _OUTLET, made)
        return made


def _filled(line: str, args: tuple[object, ...]) -> str:
    try:
        return line % args if args else line
    except (TypeError, ValueError):  # a slip in what is told about the work is not to end the work
        return f"{line} {args!r}"


def _send(client: Any, speaker: streams.Speaker, max_bytes: int, said: streams.Said) -> str:
    return streams.tell(client, speaker, said, max_bytes)


def tell_so_far(request: Any) -> None:
    """Send what a task's body has told: something else goes on in its place, and may tell more.

    Raises:
        ChunksNotSent: the broker has not taken it for five minutes.
    """
    if (outlet := vars(request).get(_OUTLET)) is not None:
        outlet.flush(PATIENCE_S)


@contextlib.contextmanager
def told_at_the_end(request: Any) -> Iterator[None]:
    """A task's body runs inside. What it has told is in the broker afterwards, also when the body fails.

    Raises:
        ChunksNotSent: the body has not failed, and what it has put out can't be sent.
    """
    try:
        with _speaking(request):
            yield
    except BaseException as error:
        waits = isinstance(error, Exception) and not isinstance(error, ChunksNotSent)
        try:
            _close(request, PATIENCE_S if waits else 0)
        except ChunksNotSent as lost:
            logger.warning("%s", lost)
        raise
    _close(request, PATIENCE_S)


@contextlib.contextmanager
def _speaking(request: Any) -> Iterator[None]:
    thread = threading.get_ident()
    token = _body.set((request, thread))
    _bodies.add(thread)
    try:
        yield
    finally:
        _bodies.discard(thread)
        _body.reset(token)


def _close(request: Any, patience_s: float) -> None:
    outlet = vars(request).get(_OUTLET)
    setattr(request, _OUTLET, None)  # what is told later, by the task's `on_failure`, say, is for the log alone
    if outlet is not None:
        outlet.close(patience_s)
