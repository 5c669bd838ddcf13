"""A pool of processes is not stopped in the middle of an answer that one of them has given; and answers come together.

SIGQUIT stops the pool inside Celery's signal handler, wherever the main process is then. Had it read an answer, and not
yet noted what it says, the pool would wait for that answer until it takes the process for lost. So a stop that comes
there is made right after.

A process gives two answers a task, one when it begins. Celery reads one of each process in a turn of its event loop,
and has the loop watch the process's pipe anew after each. Here those that have come are read in one turn.

Of Celery 5.7's `AsynPool`, held by a contract test: its `_result_handler._recv_message`, a generator that reads one
answer, has the loop watch the pipe for the next one, and has the answer noted.
"""

from __future__ import annotations

import fcntl
import struct
import termios
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

#: Of one process, so many answers are read in one turn of the event loop: others have said something too.
_IN_ONE_TURN = 8


class WholeAnswers:
    """Stands between a pool that is stopped, the reading of its processes' answers, and `stop`, which stops it."""

    def __init__(self, receive: Callable[..., Iterator[None]], stop: Callable[[], None]) -> None:
        self._receive, self._stop = receive, stop
        self._reads = False
        self._stop_is_due = False

    def receive(self, add_reader: Callable[..., None], fd: int, callback: Callable[[Any], None]) -> Iterator[None]:
        """Read one answer, in as many steps as its bytes come in; then those that have come meanwhile."""
        for _ in range(_IN_ONE_TURN):
            yield from self._one(self._receive(partial(_watch, add_reader), fd, callback))
            if not _has_come(fd):
                return

    def _one(self, answer: Iterator[None]) -> Iterator[None]:
        while True:
            self._reads = True
            try:
                next(answer)
            except StopIteration:
                return
            finally:
                self._reads = False
                if self._stop_is_due:
                    self._stop_is_due = False
                    self._stop()
            yield

    def stop(self) -> None:
        """Stop the pool, now or when the answer at hand is noted."""
        if self._reads:
            self._stop_is_due = True
        else:
            self._stop()


def _watch(add_reader: Callable[..., None], fd: int, handler: Callable[..., Any], *args: Any) -> None:
    """Have the loop call `handler` when there is more to read, unless it does already."""
    if add_reader.__self__.readers.get(fd) != (handler, args):  # type: ignore[attr-defined]  # a method of the loop
        add_reader(fd, handler, *args)


def _has_come(fd: int) -> bool:
    """Whether there is something to read by now."""
    try:
        count: int = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0]
    except OSError:  # its process has ended, and Celery sees to that
        return False
    return count > 0
