"""Tasks and workflows that end badly, come late or are tried again."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import chain

from tasks import task
from tests.integration.sample import add, ignored, join, wait_for_file
from workflows import workflow

#: What a worker that runs these imports.
IMPORTS = f"tests.integration.sample,{__name__}"


@task
def die_once(flag: str) -> str:
    """Ends its process with SIGKILL the first time, when it has made the file `flag`."""
    if not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@workflow
def dies_once(flag: str) -> Any:
    return chain(die_once.s(flag), join.s())


@task
def kill_worker(ledger: str, unless: str) -> str:
    """Kills the worker it runs in, until somebody makes the file `unless`; says in `ledger` that it began."""
    _write(ledger, str(os.getppid()))
    if not Path(unless).exists():
        time.sleep(0.3)  # as what fills the memory would: the worker has told by then that it has begun
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return "survived"


@task
def use_up_memory() -> None:
    raise MemoryError("no more of it")


def _write(ledger: str, line: str) -> None:
    with Path(ledger).open("a") as file:
        file.write(line + "\n")


@task(retry_for=ConnectionError, max_attempts=3, retry_backoff_max="2s")
def unreliable(ledger: str, failures: int, deaths: int = 0) -> int:
    """Fails so often, then kills its process so often, then says at which attempt it succeeds."""
    _write(ledger, f"{time.time()}")
    attempt = len(Path(ledger).read_text().splitlines())
    if attempt <= failures:
        raise ConnectionError(f"no answer at attempt {attempt}")
    if attempt <= failures + deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return attempt


@task(max_attempts=3, retry_for=ConnectionError)
def unreliable_after_death(ledger: str) -> None:
    """Kills its process, then fails."""
    _write(ledger, f"{time.time()}")
    if len(Path(ledger).read_text().splitlines()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    raise ConnectionError("no answer")


@task(bind=True, max_attempts=2)
def tries_again(self: Any, ledger: str, wait_s: float) -> None:
    """Asks for another try without saying why: the error is at hand."""
    _write(ledger, f"{time.time()}")
    try:
        {}["it"]
    except LookupError:
        self.retry(countdown=wait_s)


@workflow
def patient(ledger: str, failures: int) -> Any:
    return chain(unreliable.s(ledger, failures), join_number.s())


@workflow
def waits_long(ledger: str) -> Any:
    return chain(tries_again.s(ledger, 3600), join_number.s())


@task
def join_number(attempt: int) -> str:
    return f"attempt {attempt}"


@task
def begin(ledger: str, name: str) -> None:
    """Says in `ledger` when it began, and its name."""
    _write(ledger, f"{time.time():.3f} {name}")


@workflow
def begins(ledger: str, name: str) -> Any:
    return chain(begin.s(ledger, name), join_number.si(1))


@workflow
def waits_for_ignored(path: str, started: str) -> Any:
    return chain(wait_for_file.si(path, started=started), ignored.si(1), add.si(1, 1))
