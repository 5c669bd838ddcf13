"""How leases reach a Celery worker: what is being worked on, and the end of a lease with its worker."""

from __future__ import annotations

import contextlib
from typing import Any
from weakref import WeakValueDictionary

import redis
from celery import Celery, bootsteps
from celery.concurrency.asynpool import AsynPool
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
            if not channel.closed:  # by a broken connection: the next one tells
                with contextlib.suppress(redis.RedisError):
                    channel.settle()

    def shutdown(self, consumer: Any) -> None:
        """The pool has ended: nobody has to wait for the lease to run out."""
        channel = consumer.task_consumer and consumer.task_consumer.channel
        if isinstance(channel, Channel) and channel.leased:
            with contextlib.suppress(redis.RedisError):  # it runs out, then
                channel.lease.end()


class PoolStep(bootsteps.StartStopStep):
    """Two changes to Celery's pool of processes.

    A process that died is replaced, and its task run again, at once: Celery 5.7 looks when the process's end of a pipe
    closes, a moment before the process can be waited for, finds nothing, and looks again five seconds later.

    `flush`, called when the worker's connection breaks or the worker stops, leaves alone what a process has been
    written and not yet confirmed: Celery forgets such jobs, and the process runs them all the same.
    """

    requires = ("celery.worker.components:Pool",)

    def start(self, worker: Any) -> None:
        """Before the event loop watches the processes."""
        pool: Any = getattr(worker.pool, "_pool", None)
        if not isinstance(pool, AsynPool):
            return
        notice, flush = pool._event_process_exit, pool.flush

        def notice_and_look_again(hub: Any, process: Any) -> None:
            notice(hub, process)
            hub.call_later(_PROCESS_ENDS_WITHIN_S, pool.maintain_pool)

        def flush_the_unwritten() -> None:
            written = [job for job in pool._cache.values() if not job._accepted and job._write_to]
            for job in written:
                job._accepted = True
            try:
                flush()
            finally:
                for job in written:
                    job._accepted = False

        pool._event_process_exit = notice_and_look_again
        worker.pool.flush = flush_the_unwritten


def running_tags() -> set[str]:
    """The tags of the messages whose tasks have been given to a process of the pool.

    Checked with Celery 5.7 and billiard 4.3: a request becomes active when its process says so; until then its job's
    `_write_to` tells the process it has been written to, and one that was flushed is in the pool's `_cache` no more.
    """
    tags = {request.message.delivery_tag for request in state.active_requests}
    for tag, job in list(handed_over.items()):
        if getattr(job, "_write_to", None) is not None and job._job in job._cache:
            tags.add(tag)
    return tags
