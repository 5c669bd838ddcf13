"""A pool of processes is not stopped in the middle of an answer that one of them has given.

SIGQUIT stops the pool inside Celery's signal handler, wherever the main process is then. Had it read an answer, and not
yet noted what it says, the pool would wait for that answer until it takes the process for lost. So a stop that comes
there is made right after.

Of Celery 5.7's `AsynPool`, held by a contract test: its `_result_handler._recv_message`, a generator that reads one
answer and has it noted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


class WholeAnswers:
    """Stands between a pool that is stopped, the reading of its processes' answers, and `stop`, which stops it."""

    def __init__(self, receive: Callable[..., Iterator[None]], stop: Callable[[], None]) -> None:
        self._receive, self._stop = receive, stop
        self._reads = False
        self._stop_is_due = False

    def receive(self, *args: Any) -> Iterator[None]:
        """Read one answer, in as many steps as its bytes come in."""
        answer = self._receive(*args)
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
