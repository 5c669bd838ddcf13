"""Tasks with limits, which leave word of when they begin and end."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import chain, chord

from tasks import task
from tests.chaos import ledger
from tests.integration.sample import add, total, wait_for_file
from workflows import workflow

RATE_PER_S = 10


def _hold(request: Any, path: str, number: int, hold_s: float) -> int:
    attempt_id = f"{request.id}:{os.getpid()}:{time.monotonic()}"
    ledger.write(path, "start", number, attempt_id, request.hostname)
    time.sleep(hold_s)
    ledger.write(path, "end", number, attempt_id, request.hostname)
    return number


@task(bind=True, concurrency=2, key="model:{model}")
def ask(self: Any, model: int, path: str, hold_s: float = 0.1) -> int:
    return _hold(self.request, path, model, hold_s)


@task(bind=True, concurrency=1)
def alone(self: Any, number: int, path: str) -> int:
    return _hold(self.request, path, 0, 0.05) + number


@task(bind=True, rate=f"{RATE_PER_S}/s", key=lambda path: Path(path).name)
def paced(self: Any, path: str) -> int:
    return _hold(self.request, path, 0, 0.0)


@task(bind=True, concurrency=2, key="held")
def held(self: Any, path: str, until: str) -> int:
    """Runs until the file `until` is there."""
    attempt_id = f"{self.request.id}:{os.getpid()}"
    ledger.write(path, "start", 0, attempt_id, self.request.hostname)
    wait_for_file.run(until)
    ledger.write(path, "end", 0, attempt_id, self.request.hostname)
    return 1


@task(bind=True, concurrency=1, rate="20/s", default_retry_delay=0)
def fails_once(self: Any, path: str) -> int:
    _hold(self.request, path, 0, 0.02)
    if self.request.retries == 0:
        raise self.retry(countdown=0.1)
    return 1


@task(bind=True, concurrency=1)
def dies_once(self: Any, path: str, mark: str) -> int:
    if not Path(mark).exists():
        Path(mark).touch()
        os._exit(137)
    return _hold(self.request, path, 0, 0.02)


@workflow
def one_after_the_other(count: int, path: str) -> Any:
    return chain(chord([alone.s(number, path) for number in range(count)], total.s()), alone.s(path))


@workflow
def without_a_key() -> Any:
    """The key of its second step can't be made of what the first has returned."""
    return chain(add.si(1, 1), ask_for.s())


@task(concurrency=1, key="{question[model]}")
def ask_for(question: dict[str, str]) -> dict[str, str]:
    return question


@workflow
def by_answer(path: str) -> Any:
    """The key is made of what the step before has returned."""
    return chain(ask.si(7, path), ask.s(path))
