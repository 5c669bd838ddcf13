"""Workflows that wait for a signal, or for their time."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from celery import chain, chord

from tasks import task
from tasks.base import BaseTask
from tests.integration.sample import add, append_line, fail, join, total
from workflows import WorkflowRun, sleep_for, wait_for, waiting, workflow

IMPORTS = "tests.integration.sample,tests.integration.waiting_steps"
#: Once this file is there, a process of the pool dies when a step that waits has been told what it waited for.
DIES = Path(os.environ.get("TEST_DIES_WHEN_TOLD", "/nowhere"))


def _die_when_told(ask: Any) -> Any:
    def ask_and_die(*args: Any, **kwargs: Any) -> Any:
        said = ask(*args, **kwargs)
        if said[0] == os.environ.get("TEST_DIES_AT", "signalled") and DIES.exists():
            DIES.unlink()
            os.kill(os.getppid() if os.environ.get("TEST_DIES_WHOLE") else os.getpid(), signal.SIGKILL)
        return said

    return ask_and_die


def _die_when_replaced(on_replace: Any) -> Any:
    def replace_and_die(*args: Any) -> Any:
        try:
            return on_replace(*args)
        finally:
            if os.environ.get("TEST_DIES_AT") == "replaced" and DIES.exists():
                DIES.unlink()
                os.kill(os.getpid(), signal.SIGKILL)

    return replace_and_die


if str(DIES) != "/nowhere":
    waiting.ask = _die_when_told(waiting.ask)
    BaseTask.on_replace = _die_when_replaced(BaseTask.on_replace)


@task
def note(payload: Any, path: str) -> Any:
    """Write down what came."""
    append_line(path, repr(payload))
    return payload


@workflow
def asks(path: str = os.devnull, name: str = "approval") -> Any:
    """Wait for a word in the middle of a chain, note it, and return it."""
    return chain(add.s(1, 1), wait_for(name, prompt="Send this mail?"), note.s(path))


@workflow
def asks_last() -> Any:
    return chain(add.s(1, 1), wait_for("approval"))


@workflow
def asks_for_a_while(timeout: str, instead: bool) -> Any:
    on_timeout = chain(add.s(20, 1), add.s(1)) if instead else None
    return chain(wait_for("approval", timeout=timeout, on_timeout=on_timeout), note.s(os.devnull))


@workflow
def gives_up(path: str) -> Any:
    """Nobody says a word: two other tasks go on in the step's place."""
    on_timeout = chain(note.s("nobody there", path), add.si(1, 1))
    return chain(wait_for("approval", timeout="2s", on_timeout=on_timeout), note.s(path))


@workflow
def asks_in_a_chord() -> Any:
    """Two of three members wait; the second at the end of a chain."""
    header = [add.s(1, 1), wait_for("number"), chain(wait_for("late number"), add.s(1000))]
    return chain(chord(header, total.s()), add.s(1))


@workflow
def asks_twice_at_once() -> Any:
    return chord([wait_for("word"), wait_for("word")], join.s())


@workflow
def sleeps(duration: str) -> Any:
    return chain(sleep_for(duration), add.si(1, 2))


@workflow
def fails_beside(message: str) -> Any:
    """One member waits while the other fails."""
    return chord([wait_for("approval"), fail.si(message)], total.s())


@task(bind=True)
def decide(self: Any) -> Any:
    """Have somebody else say a number."""
    raise self.replace(wait_for("approval"))


@task
def approve(run_id: str) -> bool:
    return WorkflowRun(run_id).signal("approval", "from a task")


@workflow
def decides() -> Any:
    return chain(decide.s(), add.s(1))


@workflow
def outer() -> Any:
    """A workflow that waits, as a member of a chord of another."""
    return chord([asks_number.s(), add.s(1, 1)], total.s())


@workflow
def asks_number() -> Any:
    return chain(wait_for("number"), add.s(1))
