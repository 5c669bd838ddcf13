"""How leases reach a Celery worker: what is being worked on, and the end of a lease with its worker."""

from __future__ import annotations

import contextlib
from typing import Any
from weakref import WeakValueDictionary

import redis
from celery import Celery, bootsteps
from celery.worker import state

from agentlink.broker.transport import Channel

_PROCESS_ENDS_WITHIN_S = 0.05

#: What became of the messages given to the pool: delivery tag → the pool's result of it, for as long as that exists.
handed_over: WeakValueDictionary[str, Any] = WeakValueDictionary()


def install(app: Celery) -> None:
    """Have every worker of `app` tell its lease what it is working on. Doing it twice changes nothing."""
    app.steps["consumer"].add(LeaseStep)
    app.steps["worker"].add(PoolStep)


class LeaseStep(bootsteps.StartStopStep):
    """Tells the lease what must not be given back when the connection breaks, and ends it with the worker."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """After every connect: what was in hand and went down with the last connection goes back."""
        channel = consumer.task_consumer.channel
        if isinstance(channel, Channel):
            channel.lease.running_tags = running_tags
            channel.lease.give_back_all_but(running_tags())

    def stop(self, consumer: Any) -> None:
        """The worker takes nothing more: what has not been started goes back at once."""
        channel = consumer.task_consumer and consumer.task_consumer.channel
        if isinstance(channel, Channel) and channel.leased:
            if flush := getattr(consumer.pool, "flush", None):
                flush()
            channel.lease.give_back_all_but(running_tags())
            with contextlib.suppress(redis.RedisError):  # a broken connection; the next one tells
                channel.settle()

    def shutdown(self, consumer: Any) -> None:
        """The pool has ended: nobody has to wait for the lease to run out."""
        channel = consumer.task_consumer and consumer.task_consumer.channel
        if isinstance(channel, Channel) and channel.leased:
            with contextlib.suppress(redis.RedisError):  # it runs out, then
                channel.lease.end()


class PoolStep(bootsteps.StartStopStep):
    """Has a process that died replaced, and its task run again, at once.

    Celery 5.7 looks when the process's end of a pipe closes. That is a moment too early: the process can't be waited
    for yet, nothing is found, and the next look is up to five seconds away.
    """

    requires = ("celery.worker.components:Pool",)

    def start(self, worker: Any) -> None:
        """Before the event loop watches the processes."""
        pool: Any = getattr(worker.pool, "_pool", None)
        stock = getattr(pool, "_event_process_exit", None)
        if stock is None:  # no pool of processes
            return

        def look_again(hub: Any, process: Any) -> None:
            stock(hub, process)
            hub.call_later(_PROCESS_ENDS_WITHIN_S, pool.maintain_pool)

        pool._event_process_exit = look_again


def running_tags() -> set[str]:
    """The tags of the messages whose tasks have been handed to a process of the pool.

    Checked with Celery 5.7 and billiard 4.3: a request becomes active when its process says so; until then its job's
    `_scheduled_for` tells the process it was written to, and one that the pool has flushed is in its `_cache` no more.
    """
    tags = {request.message.delivery_tag for request in state.active_requests}
    for tag, job in list(handed_over.items()):
        if getattr(job, "_scheduled_for", None) is not None and job._job in job._cache:
            tags.add(tag)
    return tags
