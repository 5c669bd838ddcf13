"""What a task's body may tell while it runs: how far it has come, lines of its log, parts of its output."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

from kombu.utils.json import dumps

from agentlink.broker import streams
from agentlink.broker.errors import ChunksNotSent
from agentlink.broker.outlet import Outlet
from agentlink.broker.results import PATIENCE_S
from agentlink.settings import load
from tasks.errors import ChunkTooLarge

logger = logging.getLogger(__name__)

#: The most JSON one call of `emit` takes.
CHUNK_MAX_BYTES = 256_000
#: A longer log line is cut.
LINE_MAX_CHARS = 4_000

_OUTLET = "agentlink_outlet"


class Telling:
    """What `BaseTask` gets from here. Of a task that was called as a function, or in no run, the log gets to know."""

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

        It never fails: should the broker be away, the run's log misses it.
        """
        text = _filled(str(line), args)
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
        request = task.request
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
        yield
    except BaseException as error:
        waits = isinstance(error, Exception) and not isinstance(error, ChunksNotSent)
        try:
            _close(request, PATIENCE_S if waits else 0)
        except ChunksNotSent as lost:
            logger.warning("%s", lost)
        raise
    _close(request, PATIENCE_S)


def _close(request: Any, patience_s: float) -> None:
    outlet = vars(request).get(_OUTLET)
    setattr(request, _OUTLET, None)  # what is told later, by the task's `on_failure`, say, is for the log alone
    if outlet is not None:
        outlet.close(patience_s)
