"""How leases reach a Celery worker: what is being worked on, and the end of a lease with its worker."""

from __future__ import annotations

import contextlib
from typing import Any

import redis
from celery import Celery, bootsteps
from celery.worker import state

from agentlink.broker.transport import Channel


def install(app: Celery) -> None:
    """Have every worker of `app` tell its lease what it is working on. Doing it twice changes nothing."""
    app.steps["consumer"].add(LeaseStep)


class LeaseStep(bootsteps.StartStopStep):
    """Tells the lease what must not be given back when the connection breaks, and ends it with the worker."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """After every connect."""
        channel = consumer.task_consumer.channel
        if isinstance(channel, Channel):
            channel.lease.is_running = is_running

    def shutdown(self, consumer: Any) -> None:
        """The pool has ended: nobody has to wait for the lease to run out."""
        channel = consumer.task_consumer and consumer.task_consumer.channel
        if isinstance(channel, Channel) and channel.leased:
            with contextlib.suppress(redis.RedisError):  # it runs out, then
                channel.lease.end()


def is_running(tag: str) -> bool:
    """Whether the message's task has been handed to a process of the pool.

    Checked with Celery 5.7 and billiard 4.3: a request becomes active when its process says so; until then the job's
    `_scheduled_for` tells the process it was written to.
    """
    for request in state.reserved_requests:
        if request.message.delivery_tag == tag:
            result = request._apply_result() if request._apply_result else None
            return request in state.active_requests or getattr(result, "_scheduled_for", None) is not None
    return False
