"""What runs under chaos, and in tests of leases."""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any

from celery import chain, chord

from tasks import task
from tests.chaos import ledger
from tests.integration import sample
from workflows import workflow


@task(bind=True)
def enter(self: Any, number: int, path: str, duration_s: float) -> str:
    """Enter the ledger at `path`, work, enter it again; the result names the attempt."""
    attempt_id = uuid.uuid4().hex[:12]
    ledger.write(path, "start", number, attempt_id, self.request.hostname)
    time.sleep(duration_s)
    ledger.write(path, "end", number, attempt_id, self.request.hostname)
    return attempt_id


@workflow
def slow_to_build(path: str, started: str) -> Any:
    """A canvas that is there when the file `path` is."""
    sample.wait_for_file(path, started=started)
    return chain(chord([sample.add.s(1, 1)], sample.total.s()), sample.add.s(1))


@task(bind=True, max_attempts=1)
def end_before_the_body(self: Any, unless: str, whole_worker: bool) -> int:
    """Its result is stored, and as the chord's body is to be sent, its process (or worker) is killed; but only once.

    It has only one attempt: what follows is none.
    """

    def die(*_: Any) -> None:
        os.kill(os.getppid() if whole_worker else os.getpid(), signal.SIGKILL)
        time.sleep(60)

    if not Path(unless).exists():
        Path(unless).touch()
        self.app.amqp._retry_publish = die
    return 1


@workflow
def killed_before_its_body(unless: str, whole_worker: bool) -> Any:
    """A chord whose last part kills what would send its body."""
    return chord([end_before_the_body.s(unless, whole_worker)], sample.total.s())
