"""How leases reach a Celery worker: what is being worked on, and the end of a lease with its worker."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import redis
from celery import Celery, bootsteps
from celery.concurrency.asynpool import AsynPool
from celery.worker import state

from agentlink.broker.transport import Channel
from agentlink.broker.whole_answers import WholeAnswers

_PROCESS_ENDS_WITHIN_S = 0.05
# A process begins what it has been written at once; this is for a machine that is very busy.
_BEGUN_WITHIN_S = 5.0

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
    """What is different in Celery's pool of processes.

    A process that died is replaced, and its task run again, at once: Celery 5.7 looks when the process's end of a pipe
    closes, a moment before the process can be waited for, finds nothing, and looks again five seconds later. What a
    process that was killed has started is killed with it: its task, run again, starts the same once more.

    `flush`, called when the worker's connection breaks or the worker stops, leaves alone what a process has been
    written and not yet confirmed: Celery forgets such jobs, and the process runs them all the same.

    A pool that stops waits for a job that no process has begun for a moment only: SIGQUIT stops the pool inside
    Celery's signal handler, and where that came while a job was being written, nobody would ever begin it.

    Nor is it stopped between an answer that was read and what that says: see `whole_answers`.

    A process that has ended while the worker's connection was broken is not watched again on the next one: Celery 5.7
    ends the worker with "file descriptor is None" then.
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
            hub.call_later(_PROCESS_ENDS_WITHIN_S, look_again, process)

        def look_again(process: Any) -> None:
            pool.maintain_pool()
            if (process.exitcode or 0) < 0:
                end_what_is_left_of(process.pid)

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
        pool._track_child_process = but_those_noticed(pool._track_child_process)
        worker.pool.flush = flush_the_unwritten
        answers = WholeAnswers(pool._result_handler._recv_message, worker.pool.stop)
        pool._result_handler._recv_message, worker.pool.stop = answers.receive, answers.stop
        # Called again and again while a pool that stops waits for the answers of its processes.
        pool._result_handler.check_timeouts = forget_the_unbegun(pool._cache, pool._result_handler.check_timeouts)


def end_what_is_left_of(pid: int) -> None:
    """Kill the process group that a process of the pool has led; no other has its number while anybody is in it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def but_those_noticed(track: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """`track`, which has an event loop watch for the end of a process, but for one whose end has been noticed."""

    def track_the_others(process: Any, hub: Any) -> None:
        if getattr(process, "_sentinel_poll", 0) is not None:
            track(process, hub)

    return track_the_others


def forget_the_unbegun(
    jobs: dict[int, Any], check_timeouts: Callable[[], None] | None, clock: Callable[[], float] = time.monotonic
) -> Callable[[], None]:
    """What a pool that stops is to call while it waits for `jobs`: `check_timeouts`, and a look at those not begun.

    The message of one that is forgotten goes back to its queue with the worker's lease. The process it was written to,
    which may have got half of it and wait for the rest for ever, is killed when it has no other.
    """
    first_called_at: float | None = None

    def check() -> None:
        nonlocal first_called_at
        first_called_at = first_called_at or clock()
        if check_timeouts is not None:
            check_timeouts()
        if clock() >= first_called_at + _BEGUN_WITHIN_S:
            busy = {job._write_to for job in jobs.values() if job._accepted}
            for number, job in list(jobs.items()):
                if not job._accepted and job._write_to not in busy:
                    del jobs[number]
                    if job._write_to is not None:
                        _kill(job._write_to)

    return check


def _kill(process: Any) -> None:
    process._controlled_termination = True  # that it ends by a signal is no error
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)


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
