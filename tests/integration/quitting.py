"""What a test adds to a worker: SIGQUIT comes at a bad moment, once a file is there.

That is when half of a job has been written, or when an answer has been read and not yet noted.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from billiard.pool import READY
from celery import bootsteps

from tasks import app

NOW = Path(os.environ.get("TEST_QUIT_NOW", "/nowhere"))
IN = os.environ.get("TEST_QUIT_IN")
_HEADER_BYTES = 4


class QuitStep(bootsteps.StartStopStep):
    requires = ("celery.worker.components:Pool",)

    def start(self, worker: Any) -> None:
        if IN == "answer":
            handlers = worker.pool._pool._result_handler.state_handlers
            handlers[READY] = _quit_first(handlers[READY])
            return
        for process in worker.pool._pool._pool:
            process.send_job_offset = _then_quit(process.send_job_offset)


def _then_quit(send: Callable[[Any, int], int]) -> Callable[[Any, int], int]:
    def send_and_quit(buffer: Any, offset: int) -> int:
        sent = send(buffer, offset)
        if len(buffer) == _HEADER_BYTES and NOW.exists():
            NOW.unlink()
            os.kill(os.getpid(), signal.SIGQUIT)
        return sent

    return send_and_quit


def _quit_first(note: Callable[..., None]) -> Callable[..., None]:
    def quit_and_note(*answer: Any) -> None:
        if NOW.exists():
            NOW.unlink()
            os.kill(os.getpid(), signal.SIGQUIT)
        note(*answer)

    return quit_and_note


app.steps["worker"].add(QuitStep)
