"""The Celery app: wiring only."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, Concatenate, Literal, overload

import click
from celery import signals

from agentlink import up
from agentlink.broker import along, cancelled, chord_step, outcomes, revoked, sweep_step
from agentlink.broker import celery_step as lease_step
from agentlink.broker.guard_watch import GuardWatch
from agentlink.broker.profiles import Profiles
from agentlink.errors import SettingsError
from agentlink.processes import die_with_parent
from agentlink.settings import Settings, load
from resource_guard import celery_step as guard_step
from tasks import soft_signal, with_pages
from tasks.base import BaseTask, P, R
from tasks.celery_app import App
from tasks.limits import Key, limits_of
from tasks.options import task_options


def _settings() -> Settings:
    try:
        return load()
    except SettingsError as error:
        if click.get_current_context(silent=True) is None:
            raise
        # `celery -A tasks …` shows whatever an import raises with its traceback, but lets this pass as it is.
        sys.exit(f"agentlink: {error}")


def _guard_watch() -> GuardWatch:
    settings, parent = load(), os.getppid()
    state = up.read_state(settings)
    top_pid = parent if state and state["pid"] == parent else os.getpid()
    return GuardWatch(lambda: app.backend.client, top_pid=top_pid, embedded=settings.embedded)


app = App("agentlink")
guard_links = guard_step.Links(
    knowledge=lambda: Profiles(lambda: app.backend.client),
    broker=_guard_watch,
    running_tags=lease_step.running_tags,
)
guard_step.install(app, _settings(), guard_links)
lease_step.install(app)
along.install(app)
revoked.install(app)
sweep_step.install(app)
cancelled.install(app)
soft_signal.install()
chord_step.install(app)
outcomes.install(app)
with_pages.install()
app.config_from_object("celeryconfig")


@overload
def task(function: Callable[P, R], /) -> BaseTask[P, R]: ...
@overload
def task(
    *,
    bind: Literal[True],
    memory: str | int | None = None,
    cpu: float | None = None,
    retry_for: Iterable[type[Exception]] | type[Exception] | None = None,
    max_attempts: int | None = None,
    retry_backoff: str | float | None = None,
    retry_backoff_max: str | float | None = None,
    concurrency: int | None = None,
    rate: str | None = None,
    key: Key | None = None,
    **options: Any,
) -> Callable[[Callable[Concatenate[Any, P], R]], BaseTask[P, R]]: ...
@overload
def task(
    *,
    bind: Literal[False] = False,
    memory: str | int | None = None,
    cpu: float | None = None,
    retry_for: Iterable[type[Exception]] | type[Exception] | None = None,
    max_attempts: int | None = None,
    retry_backoff: str | float | None = None,
    retry_backoff_max: str | float | None = None,
    concurrency: int | None = None,
    rate: str | None = None,
    key: Key | None = None,
    **options: Any,
) -> Callable[[Callable[P, R]], BaseTask[P, R]]: ...
def task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    memory: str | int | None = None,
    cpu: float | None = None,
    retry_for: Iterable[type[Exception]] | type[Exception] | None = None,
    max_attempts: int | None = None,
    retry_backoff: str | float | None = None,
    retry_backoff_max: str | float | None = None,
    concurrency: int | None = None,
    rate: str | None = None,
    key: Key | None = None,
    **options: Any,
) -> Any:
    """Make a function a task: Celery's `app.task`, which may also declare what one call needs and when it is retried.

    `memory` is a size like `"1.5GB"`, `cpu` a number of cores.

    A call that raises one of `retry_for` is tried again; by default none is, since not every task may be done twice.
    It waits in the broker for a random time of up to `retry_backoff` (1s), then twice, four times that …, and never
    above `retry_backoff_max` (5m). `max_attempts` (3) is how many times the call may begin in all: attempts that ended
    with such an error and attempts that ended with the death of their process add up. After the last, the error itself
    is the task's failure; a process that died makes it a dead letter.

    `concurrency` is how many calls may run at once, and `rate` ("60/m", "5/s", "1000/h") how often one may begin, over
    all workers: calls of the same `key`, which is a text with the task's parameters in it ("model:{model}"), a function
    of the arguments, or, if not given, the task's name; tasks that make the same key share what it allows. What has to
    wait takes no process.

    Everything else (`queue`, `soft_time_limit`, `time_limit`, `bind`, `name` …) is Celery's.

    Raises:
        ValueError: one of these makes no sense; it says what would.
    """
    if queue := options.get("queue"):
        app.amqp.queues.add(queue)  # workers take from it too, unless they are told which queues are theirs
    retry = {
        "retry_for": retry_for,
        "max_attempts": max_attempts,
        "retry_backoff": retry_backoff,
        "retry_backoff_max": retry_backoff_max,
    }
    made = task_options(memory, cpu, retry, options)

    def decorate(function: Callable[..., Any]) -> Any:
        limits = limits_of(function, concurrency, rate, key, made)
        return app.task(function, limits=limits, **made)

    return decorate(function) if function is not None else decorate


_importer_pid = os.getpid()


@signals.celeryd_init.connect
def _start_broker(**_: Any) -> None:
    app.need_broker()


@signals.worker_process_init.connect
def _end_with_worker(**_: Any) -> None:
    """A worker that is killed leaves no child running: stock Celery's would finish its task, unseen and unrecorded."""
    if os.getpid() != _importer_pid:  # the solo pool's process is the worker itself
        die_with_parent(_importer_pid)


@signals.worker_before_create_process.connect
def _share_memory_with_children(**_: Any) -> None:
    """Leave alone in the children what the garbage collector would otherwise touch, and so copy: 10 MB a child."""
    gc.collect()
    gc.freeze()
