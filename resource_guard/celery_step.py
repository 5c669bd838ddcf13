"""How the guard reaches a Celery worker; the only file here that knows Celery.

`install(app, settings)` is enough for a plain `celery -A tasks worker` to be guarded, whatever its pool: a worker step
runs the guard in the worker's main process, a consumer step puts the valve into the channel that takes tasks. While
the valve is closed that channel asks the broker for nothing. Remote control has a channel of its own, so
`celery inspect` is answered throughout. Tasks that the worker had already taken still start.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery import Celery, bootsteps
from celery.worker.control import inspect_command

from agentlink.errors import SettingsError
from agentlink.settings import Settings
from resource_guard.guard import Guard
from resource_guard.limits import Limits
from resource_guard.sensors import memory_sensor
from resource_guard.valve import Valve

# An idle worker's event loop sleeps for seconds; it has to come round to notice that the valve is open again.
WAKE_INTERVAL_S = 0.25


@dataclass(frozen=True, kw_only=True)
class GuardSetup:
    """What `install` leaves on the app for the steps, which Celery makes itself."""

    limits: Limits
    interval_s: float


def install(app: Celery, settings: Settings) -> None:
    """Have every worker of `app` guarded, unless `settings.guard` is off. Doing it twice changes nothing.

    Raises:
        SettingsError: the limits contradict each other.
    """
    if not settings.guard:
        return
    try:
        limits = Limits(
            memory_bytes=settings.memory_bytes,
            soft_fraction=settings.memory_soft_fraction,
            resume_fraction=settings.memory_resume_fraction,
            free_bytes=settings.memory_free_bytes,
            rest_s=settings.guard_rest_s,
        )
    except ValueError as error:
        raise SettingsError([str(error)]) from None
    app.guard_setup = GuardSetup(limits=limits, interval_s=settings.guard_interval_s)
    app.steps["worker"].add(GuardStep)
    app.steps["consumer"].add(ValveStep)


class GuardStep(bootsteps.StartStopStep):
    """Runs the guard from the start of the worker to its end, as `worker.resource_guard`."""

    requires = ("celery.worker.components:Pool",)

    def create(self, worker: Any) -> Guard:
        """A guard over this process, the worker's main one, and all its descendants."""
        setup: GuardSetup = worker.app.guard_setup
        # Below the resume mark a more exact reading could change no decision.
        sensor = memory_sensor(os.getpid(), exact_above_bytes=setup.limits.resume_bytes)
        guard = Guard(setup.limits, sensor, Valve(), interval_s=setup.interval_s)
        worker.resource_guard = guard
        return guard


class ValveStep(bootsteps.StartStopStep):
    """Puts the valve between the broker and the worker's task consumer, again after every reconnect."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def create(self, consumer: Any) -> None:
        """Take hold of what lives as long as the worker; `start` does what lives as long as a connection."""
        self._valve: Valve = consumer.controller.resource_guard.valve
        self._wake: Any = None
        consumer.create_task_handler = give_back_while_closed(self._valve, consumer.create_task_handler)

    def start(self, consumer: Any) -> None:
        """Put the valve into the task channel of this connection."""
        hold_while_closed(self._valve, consumer.task_consumer.channel)
        self._wake = consumer.timer.call_repeatedly(WAKE_INTERVAL_S, _come_round)

    def stop(self, consumer: Any) -> None:
        """Stop waking the event loop."""
        if self._wake is not None:
            consumer.timer.cancel(self._wake)
            self._wake = None


@inspect_command(name="guard")
def report_guard(state: Any, **_arguments: object) -> dict[str, object]:
    """State, readings and limits of the resource guard."""
    guard: Guard | None = getattr(state.consumer.controller, "resource_guard", None)
    return guard.status() if guard else {"state": "off"}


def hold_while_closed(valve: Valve, channel: Any) -> None:
    """Have `channel` ask the broker for messages only while `valve` is open.

    Checked with kombu 5.7 and Celery 5.7. `MultiChannelPoller` asks `channel.qos.can_consume()` before it sends a BRPOP
    and before it reads the reply; Celery's own `worker_disable_prefetch` replaces the same function. `_in_poll` is the
    connection that waits for a reply. A BRPOP sent before the pause is let through to its end: the server has taken its
    message off the queue already, and a reply left unread would be lost with this worker.
    """
    has_credit: Callable[[], bool] = channel.qos.can_consume

    def can_consume() -> bool:
        return (valve.is_open or bool(getattr(channel, "_in_poll", None))) and has_credit()

    channel.qos.can_consume = can_consume


def give_back_while_closed(valve: Valve, create_task_handler: Callable[..., Any]) -> Callable[..., Any]:
    """Have a message that still arrives while `valve` is closed go back to its queue, for whoever is free.

    That is at most one for each pause, the reply to a BRPOP sent before it. Wraps Celery 5.7's
    `Consumer.create_task_handler`, which its event loop calls for each connection.
    """

    def create_guarded_task_handler(*args: Any, **kwargs: Any) -> Callable[[Any], None]:
        handle: Callable[[Any], None] = create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> None:
            if valve.is_open:
                handle(message)
            else:
                message.requeue()

        return on_task_received

    return create_guarded_task_handler


def _come_round() -> None:
    """Nothing: that the timer fires makes the event loop ask `can_consume` again."""
