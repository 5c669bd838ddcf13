"""Tasks and workflows that pages are to show, and a run that is only recorded: 5,000 steps without a worker."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import redis
from celery import chain

from tasks import task
from tests.integration.sample import add
from workflows import StepState, recording, wait_for, workflow
from workflows.store import StepRecord, steps_key

IMPORTS = "tests.integration.sample,tests.integration.waiting_steps,tests.browser.work"
#: What would say something in the console, were it not shown as the text it is.
HOSTILE = "<script>console.log('run')</script><img src=x onerror=console.log('run')>"


@task(name=f"tests.{HOSTILE}")
def hostile(text: str, token: str = "") -> str:
    """Its name, argument, and error."""
    raise ValueError(text)


@task
def echo(text: str) -> str:
    return text


@task
def dies(text: str, token: str = "") -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@workflow
def says_hostile(text: str = HOSTILE) -> Any:
    return chain(echo.si(text), hostile.si(text, token="sesame-open"))


@workflow
def returns_hostile(text: str = HOSTILE) -> Any:
    return chain(echo.si(text), echo.s())


@workflow
def approved() -> Any:
    """Publish once somebody has approved it."""
    return chain(add.si(1, 1), wait_for("approval", prompt=f"Publish? {HOSTILE}"), echo.si("published"))


def record_large_run(client: redis.Redis, run_id: str, width: int) -> list[StepRecord]:
    """A chord of so many chains of two, with nobody to run it; its steps."""
    created = recording.creation_commands(run_id, "tests.large", str(width), None)
    places = [f"0.{member}.{step}" for member in range(width) for step in range(2)] + [f"0.{width}"]
    steps = [
        StepRecord(id=f"{run_id}-{place}", name="tests.browser.work.echo", place=place, state=StepState.WAITING)
        for place in places
    ]
    recording.record_plan(client, run_id, created, steps, graph=f"c(k({width}*c(2*.),.))")
    return steps


def move_on(client: redis.Redis, run_id: str, steps: list[StepRecord], state: StepState) -> None:
    """Have steps be in another state, as if a worker had told."""
    now = time.time()
    facts = f'{{"name": "tests.browser.work.echo", "started_at": {now - 1}, "ended_at": {now}, "place": '
    key = steps_key(run_id)
    client.hset(key, mapping={step.id: f'{state} {facts}"{step.place}"}}' for step in steps})
