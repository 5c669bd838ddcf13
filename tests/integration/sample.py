"""Tasks and workflows that the integration tests run."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

from celery import chain, chord, group

from tasks import task
from workflows import workflow


@task
def add(x: int, y: int) -> int:
    return x + y


@task(acks_late=False)
def add_once(x: int, y: int) -> int:
    """Whatever happens, it does not run twice."""
    return x + y


@task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@task
def fail(message: str) -> None:
    raise ValueError(message)


@task
def own_pid() -> int:
    return os.getpid()


@task
def log_in(user: str, password: str, options: dict[str, Any]) -> int:
    """Gets its secrets as they are."""
    return [user, password, options["api_key"]].count("hush")


@task
def variable(name: str) -> str | None:
    """A variable of the environment of the task's process."""
    return os.environ.get(name)


@task
def append_line(path: str, text: str) -> None:
    with Path(path).open("a") as file:
        file.write(text + "\n")


@task
def note(path: str) -> None:
    """One line more."""
    append_line.run(path, note.request.id)


@task
def wait_for_file(path: str, timeout_s: float = 30, hold_bytes: int = 0, started: str | None = None) -> int:
    """Hold memory, say so by making the file `started`, and go on until the file `path` is there."""
    held = bytearray(b"x") * hold_bytes
    if started:
        Path(started).write_text(str(os.getpid()))
    deadline = time.monotonic() + timeout_s
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.01)
    return len(held)


@task
def run_a_program(started: str, release: str) -> int:
    """A shell with a program in the background, which says who they are and ends when told to; its exit status.

    The task ignores being asked to end.
    """
    script = 'sleep 1000 & echo $$ $! >> "$0"; until [ -e "$1" ]; do sleep 0.02; done; kill $!'
    with subprocess.Popen(["sh", "-c", script, started, release]) as program:
        while (status := program.poll()) is None:
            with contextlib.suppress(Exception):
                time.sleep(0.02)
    return status


@task
def wait_for_ever() -> None:
    while True:
        try:
            time.sleep(0.1)
        except Exception:  # noqa: BLE001 - a task that ignores being asked to end
            continue


@task(time_limit=1)
def wait_for_a_second() -> None:
    wait_for_ever()


@task(ignore_result=True)
def ignored(x: int) -> int:
    return x


@task(ignore_result=True)
def ignored_failure(message: str) -> None:
    raise ValueError(message)


@task(bind=True)
def hand_over(self: Any, number: int) -> None:
    """Have two other tasks do it: (number + 9) + 1."""
    raise self.replace(chain(add.s(number, 9), add.s(1)))


@task
def pass_on(path: str, started: str) -> str:
    """Have another task do it, when the file `path` is there; its id."""
    wait_for_file(path, started=started)
    task_id: str = add.delay(1, 1).id
    return task_id


@task(bind=True, default_retry_delay=0)
def flaky(self: Any, number: int) -> int:
    """Works the second time."""
    if self.request.retries == 0:
        raise self.retry(countdown=0.1)
    return number


@task
def die(unless: str) -> str:
    """Ends its process without a word, until somebody makes the file `unless`."""
    if not Path(unless).exists():
        os._exit(137)
    return "survived"


@task
def join(words: list[str]) -> str:
    return " ".join(words)


@workflow
def deadly(unless: str) -> Any:
    """A poison among a chord's header."""
    return chord([die.s(unless), die.si(__file__)], join.s())


@workflow
def double(number: int) -> Any:
    """Twice twice the number."""
    return chain(add.s(number, number), twice.s())


@workflow
def eightfold(number: int) -> Any:
    """Three steps."""
    return chain(add.s(number, number), twice.s(), twice.s())


@task
def twice(number: int) -> int:
    return 2 * number


@workflow
def sums(count: int) -> Any:
    """Add 1 to each number below `count` in parallel, sum up, add 1000."""
    return chain(chord([add.s(number, 1) for number in range(count)], total.s()), add.s(1000))


@workflow
def parallel(count: int) -> Any:
    return group(add.s(number, number) for number in range(count))


@workflow
def one_fails(message: str) -> Any:
    return chord([add.s(1, 1), fail.si(message)], total.s())


@workflow
def immediate(value: int) -> int:
    return value * 2


@workflow
def unbuildable(message: str) -> Any:
    raise ValueError(message)


class Overdrawn(Exception):
    """Can only be made by keywords, and holds what can't leave its process."""

    def __init__(self, *, account: str, missing: float) -> None:
        super().__init__(f"{account} lacks {missing}")
        self.account, self.missing, self.seen_by = account, missing, threading.Lock()


@task
def overdraw(account: str, *, several: bool = False) -> None:
    try:
        {}["the cause"]
    except KeyError as cause:
        overdrawn = Overdrawn(account=account, missing=2.5)
        raise (ExceptionGroup("several", [overdrawn, OSError("and this")]) if several else overdrawn) from cause


@task
def fail_elsewhere() -> None:
    """With an exception that the caller has no class for."""
    module = types.ModuleType("elsewhere")
    sys.modules["elsewhere"] = module
    module.Rejected = type("Rejected", (Exception,), {"__module__": "elsewhere"})  # type: ignore[attr-defined]
    error = module.Rejected("order", 7)
    error.fields = ["size"]
    raise error


@workflow
def overdraws(account: str) -> Any:
    return chain(add.si(1, 1), overdraw.si(account))


@workflow
def unfit(path: str) -> Any:
    """Its last step is given too much."""
    return chain(append_line.si(path, "begun"), twice.si(1, 2))


@workflow
def same_step_twice() -> Any:
    increment = add.s(1)
    return chain(add.s(0, 0), increment, increment)


@workflow
def ignoring(x: int) -> Any:
    return chain(ignored.s(x), add.si(x, 1))


@workflow
def waits(path: str, started: str) -> Any:
    return chain(wait_for_file.si(path, started=started), add.si(1, 1))


@workflow
def built_when_there(path: str) -> Any:
    """Builds its canvas when a file is there; its chord counts members that wait for another."""
    wait_for_file(path, started=f"{path}-started")
    return chord([wait_for_file.si(f"{path}-{number}") for number in range(2)], total.s())


@task
def take(size_bytes: int) -> int:
    """Take memory, for a moment."""
    return len(bytearray(b"x") * size_bytes)


@workflow
def taking(size_bytes: int) -> Any:
    return chain(take.si(size_bytes))


@workflow
def opens(password: str, user: str, url: str = "") -> Any:
    """What nobody is to read is among its arguments."""
    return join.s([user, url])
