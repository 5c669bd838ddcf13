"""How the guard reaches a Celery worker; with `control.py` the only files here that know Celery.

`install(app, settings, links)` is enough for a plain `celery -A tasks worker` to be guarded, whatever its pool. A
worker step runs the guard in the worker's main process. A consumer step puts the gate between the consumer and the
pool, and the valve into the channel that takes tasks: while it is closed that channel asks the broker for nothing.
Remote control has a channel of its own, so `celery inspect` is answered throughout.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from celery import Celery, bootsteps, signals
from celery.concurrency.asynpool import AsynPool
from celery.concurrency.prefork import TaskPool as ProcessPool

from agentlink.errors import SettingsError
from agentlink.settings import Settings
from resource_guard import caps, control  # noqa: F401 - importing control registers its commands
from resource_guard.events import Events, let_through
from resource_guard.gate import Knowledge
from resource_guard.guard import Guard
from resource_guard.keeper import Keeper
from resource_guard.limits import Limits
from resource_guard.pool_hands import let_follow, withdraw
from resource_guard.recycle import take_out
from resource_guard.sensors import make_sensors
from resource_guard.steering import Orders
from resource_guard.time_limits import count_running_time_only
from resource_guard.valve import Valve

# An idle worker's event loop sleeps for seconds; it has to come round to notice that the valve is open again.
WAKE_INTERVAL_S = 0.25


class Lasting(Knowledge, Protocol):
    """What earlier runs have taught, kept somewhere."""

    def begin(self) -> None:
        """Read it, and keep writing."""

    def end(self) -> None:
        """Write what has not been written."""


class BrokerWatch(Protocol):
    """What the guard wants to know of the broker, asked for in a thread of its own."""

    def begin(self, follow: Callable[[Orders], None]) -> None:
        """Ask, and go on asking; `follow` gets what a person has asked of the guard."""

    def end(self) -> None:
        """Cease to ask."""

    def memory(self) -> tuple[int, int] | None:
        """Bytes its data takes and may take; None while that is not known, or unlimited."""

    @property
    def root_pids(self) -> list[int]:
        """The processes that count with all their descendants: this one, what runs it, the broker once it is known."""

    def order(self, change: Callable[[Orders], Orders]) -> Orders:
        """Change what a person has asked for, kept for workers that start later; return all of it."""


@dataclass(frozen=True, kw_only=True)
class Links:
    """What the guard needs of those whom it must not import."""

    knowledge: Callable[[], Lasting]
    broker: Callable[[], BrokerWatch]
    #: The delivery tags of the messages whose tasks the pool has been given.
    running_tags: Callable[[], set[str]]


@dataclass(frozen=True, kw_only=True)
class GuardSetup:
    """What `install` leaves on the app for the steps, which Celery makes itself."""

    settings: Settings
    limits: Limits
    links: Links


def install(app: Celery, settings: Settings, links: Links) -> None:
    """Have every worker of `app` guarded, unless `settings.guard` is off. Doing it twice changes nothing.

    Raises:
        SettingsError: the limits contradict each other.
    """
    if not settings.guard:
        return
    try:
        limits = Limits.from_settings(settings)
    except ValueError as error:
        raise SettingsError([str(error)]) from None
    app.guard_setup = GuardSetup(settings=settings, limits=limits, links=links)
    app.steps["worker"].add(GuardStep)
    app.steps["consumer"].add(GateStep)


class GuardStep(bootsteps.StartStopStep):
    """Runs the guard from the start of the worker to its end, as `worker.resource_guard`."""

    requires = ("celery.worker.components:Pool",)

    def create(self, worker: Any) -> Guard:
        """A guard over this process, the worker's main one, and all its descendants."""
        setup: GuardSetup = worker.app.guard_setup
        settings = setup.settings
        worker.guard_knowledge = setup.links.knowledge()
        worker.guard_broker = setup.links.broker()
        events = worker.guard_events = Events()
        watch: BrokerWatch = worker.guard_broker
        sensor = make_sensors(
            lambda: guard.limits,
            watch.root_pids,
            os.getpid(),
            [settings.home, Path(tempfile.gettempdir())],
            watch.memory,
            settings.home,
        )
        guard = Guard(
            setup.limits,
            sensor,
            Valve(),
            interval_s=settings.guard_interval_s,
            alarm_s=settings.guard_alarm_s,
            dry_run=settings.guard_dry_run,
            on_change=events.changed,
            on_turn=events.turned,
        )
        worker.resource_guard = guard
        return guard

    def start(self, worker: Any) -> None:
        """Learn what is known, then begin to watch."""
        pool = getattr(worker.pool, "_pool", None)
        if isinstance(pool, AsynPool):
            count_running_time_only(pool, lambda pid: worker.task_keeper.stopped_s(pid))
            let_follow(pool)
        worker.guard_knowledge.begin()
        worker.guard_broker.begin(worker.resource_guard.steering.follow)
        super().start(worker)

    def stop(self, worker: Any) -> None:
        """Cease to watch, and keep what was learned."""
        super().stop(worker)
        worker.task_keeper.stop()
        worker.guard_broker.end()
        worker.guard_knowledge.end()

    terminate = stop


class GateStep(bootsteps.StartStopStep):
    """Puts the gate between the worker's consumer and its pool, and the valve before the consumer."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def create(self, consumer: Any) -> None:
        """Take hold of what lives as long as the worker; `start` does what lives as long as a connection."""
        worker = consumer.controller
        guard: Guard = worker.resource_guard
        self._running_tags = worker.app.guard_setup.links.running_tags
        self._channel: Any = None
        self._timers: list[Any] = []
        isolated = isinstance(worker.pool, ProcessPool)
        self._keeper = guard.crew = worker.task_keeper = Keeper(
            guard.valve,
            worker.guard_knowledge,
            # Celery lets as many start as there are processes; here the gate does, and some that follow others.
            start=worker._process_task if isolated else consumer.on_task_request,
            pool_size=lambda: _pool_size(worker),
            wake=self._wake,
            cores=lambda: guard.sensor.cores,
            isolated=isolated,
            withdraw=(lambda request: _withdraw(worker, request)) if isolated else None,
            take_out=(lambda pid: take_out(worker.pool._pool, pid)) if isolated and not guard.dry_run else None,
            govern=isolated and not guard.dry_run,
            dry_run=guard.dry_run,
            on_busy=guard.wake,
            on_evicted=worker.guard_events.evicted,
        )
        consumer.on_task_request = self._keeper.gate.handle
        consumer.create_task_handler = give_back_while_closed(guard.valve, consumer.create_task_handler)

    def start(self, consumer: Any) -> None:
        """Put the valve into the task channel of this connection."""
        self._channel = consumer.task_consumer.channel
        hold_while_closed(consumer.controller.resource_guard.valve, self._channel)
        gate = self._keeper.gate
        if hasattr(self._channel.qos, "look_ahead"):
            self._channel.qos.look_ahead = lambda: gate.look_ahead
        tags = self._running_tags()
        gate.finish_all_but([one.request for one in gate.started() if one.request.message.delivery_tag in tags])
        let_through(consumer.event_dispatcher)
        events: Events = consumer.controller.guard_events
        self._timers = [
            consumer.timer.call_repeatedly(WAKE_INTERVAL_S, self._keeper.attend),
            consumer.timer.call_repeatedly(WAKE_INTERVAL_S, events.send, (consumer.event_dispatcher,)),
        ]
        if consumer.hub is not None:
            consumer.hub.on_tick.add(self._keeper.attend)

    def stop(self, consumer: Any) -> None:
        """Forget what has not started: it goes back to its queue with this connection."""
        self._keeper.gate.drop_waiting()
        self._channel = None
        if consumer.hub is not None:
            consumer.hub.on_tick.discard(self._keeper.attend)
        for timer in self._timers:
            consumer.timer.cancel(timer)
        self._timers = []

    def _wake(self) -> None:
        """Have the event loop turn: it attends to the gate each time."""
        if wake := getattr(self._channel, "wake", None):
            wake()


def _pool_size(worker: Any) -> int:
    """How many tasks at a time; the pool itself knows once it has started, and is asked each time: it may grow."""
    if isinstance(worker.pool, ProcessPool) and worker.pool._pool is None:
        return int(worker.concurrency)
    return int(worker.pool.num_processes)


def _withdraw(worker: Any, request: Any) -> bool:
    reference = request._apply_result
    job = reference() if reference is not None else None
    return job is not None and withdraw(worker.pool._pool, job)


@signals.worker_process_init.connect
def _settle_in(**_: object) -> None:
    """Each pool process gives way to everything else on the machine."""
    caps.settle_in()


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
