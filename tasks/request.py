"""What a worker's main process knows of a task it has handed to the pool, and what it does when that ends badly.

Of `celery.worker.request.Request` 5.7, held by a contract test: `revoked`, `_announce_revoked`, `_apply_result`,
`on_accepted`, `on_success`, `on_timeout`, `on_failure`, `_context`, `message`, `_success_was_stored`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import redis
from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated
from celery.app.task import Context
from celery.exceptions import Ignore, Reject, Retry, WorkerLostError
from celery.worker import state
from celery.worker.request import Request as CeleryRequest

from agentlink.broker import along, dead_letters
from agentlink.broker.calls import DELIVERIES_HEADER, EVICTED_HEADER, QUEUED_AT_HEADER
from agentlink.broker.celery_step import handed_over
from agentlink.broker.outcomes import Outcome, ends
from agentlink.broker.transport import Channel
from resource_guard.caps import Used
from resource_guard.followers import NotBegun
from resource_guard.gate import Ended
from resource_guard.reservations import DECLARED_HEADER, declared
from tasks.errors import MemoryLimitExceeded, ProcessDied

logger = logging.getLogger(__name__)

# A task that has succeeded, and whose process dies as often while it tells those that come after it, tells no more.
_TELLS_AT_MOST = 20


class Request(CeleryRequest):
    """A task in a worker that survives its own process and its process's death."""

    #: Set by the guard before it ends the task's process.
    ended: Ended | None = None
    #: When its process is killed (`time.monotonic()`): it was asked to end, because its run was cancelled.
    kill_at: float | None = None
    #: Set by the guard's gate as it starts the task: called when that has ended, whichever way.
    on_end: Callable[[Any, Used | None], None] | None = None
    #: Set by the gate too, for one that is to follow another: called when its process came to it too late.
    on_not_begun: Callable[[Any], None] | None = None
    #: Whether it has been counted how it has ended; and for how long it ran, as its process says.
    _counted = False
    _ran_s: float | None = None
    #: Celery's: when a process began it.
    time_start: Any

    @property
    def deaths(self) -> int:
        """How often a process, or a whole worker, has died of or with this task."""
        count: int = self.request_dict.get(DELIVERIES_HEADER, 0)
        return count

    @property
    def retries(self) -> int:
        """How often it has been tried again after an error."""
        count: int = self.request_dict.get("retries") or 0
        return count

    def revoked(self) -> bool:
        """Whether it is not to run: revoked, expired, or buried now because it has killed enough workers.

        Celery makes a class of this one for each task, with an `execute_using_pool` of its own: it asks this first.
        """
        if super().revoked():
            return True
        if not self.deaths or self.task.begins_again(self.retries, self.deaths) or self._success_was_stored():
            return False
        self._bury(ProcessDied(self.name, "its worker ended with it", self.retries + self.deaths))
        self._end()
        return True

    @property
    def _apply_result(self) -> Any:
        return self.__dict__.get("job")

    @_apply_result.setter
    def _apply_result(self, reference: Any) -> None:
        """Celery keeps here the pool's result of it, from when it hands the task over."""
        self.__dict__["job"] = reference
        if reference is not None:
            handed_over[self.message.delivery_tag] = reference()

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """A pool process has begun it."""
        super().on_accepted(pid, time_accepted)
        channel = self.message.channel
        if isinstance(channel, Channel) and self.task.acks_late:
            channel.lease.started(self.message.delivery_tag)
        queued_at = self.request_dict.get(QUEUED_AT_HEADER)
        if queued_at is not None and not self.deaths and EVICTED_HEADER not in self.request_dict:
            ends.waited(self.name, self.time_start - queued_at)

    def acknowledge(self) -> None:
        """Be done with its message now: Celery is at its loop's next turn, and a worker that ends may have none."""
        channel = self.message.channel
        if not self.acknowledged and isinstance(channel, Channel):
            channel.lease.acknowledge(self.message.delivery_tag, along.collect_result(self.id))
        super().acknowledge()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Celery makes a class of this one for each task, with an `on_success` of its own."""
        super().__init_subclass__(**kwargs)
        answered = cls.on_success

        def on_success(self: Request, answer: tuple[Any, ...], **kwargs: Any) -> Any:
            if isinstance(answer[1], NotBegun):
                return self._start_again()
            self._ran_s = answer[2]
            if not answer[0]:
                self._count(Outcome.SUCCEEDED)
            try:
                return answered(self, answer, **kwargs)
            finally:
                self._end()

        cls.on_success = on_success

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Its time is up."""
        super().on_timeout(soft, timeout)
        if not soft:
            self._count(Outcome.FAILED)
            self._end()

    def _announce_revoked(self, *args: Any, **kwargs: Any) -> None:
        super()._announce_revoked(*args, **kwargs)
        self._count(Outcome.REVOKED)
        self._end()

    def _end(self) -> None:
        """Tell the gate, once."""
        # Celery has just forgotten whatever has this id, and what the task has replaced itself by may be here already.
        for other in list(state.reserved_requests):
            if other.id == self.id and other is not self:
                state.requests[other.id] = other
        on_end, self.on_end = self.on_end, None
        used = along.collect_used(self.id)
        if on_end is not None:
            on_end(self, used)

    def _count(self, outcome: Outcome) -> None:
        """Count how it has ended, once: what comes first is what has ended it."""
        if self._counted:
            return
        self._counted = True
        ran_s = None
        if outcome in (Outcome.SUCCEEDED, Outcome.FAILED, Outcome.RETRIED) and self.time_start:
            ran_s = time.time() - self.time_start if self._ran_s is None else self._ran_s
        ends.ended(self.name, outcome, ran_s)

    def _start_again(self) -> None:
        """Its process has said that it began, and then that it did not."""
        state.active_requests.discard(self)
        self.time_start = self.worker_pid = None
        if self.on_not_begun is not None:
            self.on_not_begun(self)
        else:
            self.give_back()

    def refuse(self, error: Exception) -> None:
        """Fail it without running it."""
        logger.error("%s", error)
        context = Context(self.request_dict)
        try:
            self.task.backend.mark_as_failure(self.id, error, request=context)
        except redis.RedisError:  # full, say: this is the main process, which must go on
            logger.exception("it goes back to its queue, since that can't be stored now")
            self.give_back()
            return
        self._count(Outcome.FAILED)
        self.send_event("task-failed", exception=repr(error), traceback=None)
        state.task_ready(self, successful=False)
        self.acknowledge()

    def _end_cancelled(self) -> None:
        """Its run was cancelled, and its process killed since it did not end when it was asked to."""
        try:
            self.task.backend.mark_as_revoked(self.id, "its run was cancelled", request=Context(self.request_dict))
        except redis.RedisError:  # the message goes back, and is refused when it is taken again
            logger.exception("that task %s was cancelled can't be stored now", self.id)
            self.give_back()
            return
        self._count(Outcome.REVOKED)
        self.send_event("task-revoked", terminated=True, signum=None, expired=False)
        state.task_ready(self, successful=False)
        self.acknowledge()

    def give_back(self) -> None:
        """Return its message to the head of its queue: it was not started."""
        state.task_ready(self, successful=False)
        self.reject(requeue=True)

    def on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """The task failed, or its process died."""
        try:
            return self._on_failure(exc_info, send_failed_event, return_ok)
        finally:
            self._end()

    def _on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool, return_ok: bool) -> Any:
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, MemoryError):
            # Celery raises it again, here in the main process, and ends the worker: it was the task's memory, not ours.
            self._count(Outcome.FAILED)
            if not return_ok:  # its process could not store it
                self.task.backend.mark_as_failure(
                    self.id, error, str(exc_info.traceback), request=Context(self.request_dict)
                )
            self.send_event("task-failed", exception=repr(error), traceback=str(exc_info.traceback))
            state.task_ready(self, successful=False)
            self.acknowledge()
            return None
        if isinstance(error, Reject) and isinstance(error.reason, MemoryLimitExceeded):
            return self._run_with_more(error.reason)
        died = isinstance(error, (WorkerLostError, SystemExit, KeyboardInterrupt))
        if died and self.kill_at is not None and not state.should_terminate:
            self._end_cancelled()
            return None
        if died and self.ended is not None and self._end_as_told(self.ended):
            return None
        if died and not self._already_cancelled and not self._already_revoked and self._begin_again(error):
            return None
        if isinstance(exc_info.exception, Retry):
            self._count(Outcome.RETRIED)
        elif isinstance(error, (Ignore, Reject)):
            self._count(Outcome.PASSED_ON)
        elif not isinstance(error, Terminated) and not (died and (self._already_cancelled or state.should_terminate)):
            self._count(Outcome.FAILED)  # those others are revoked, or go back to their queue
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def _success_was_stored(self) -> Any:
        """Celery's; its answer, which may be logged, is not to bring a large result into the main process."""
        return dict(super()._success_was_stored() or {})

    def _end_as_told(self, ended: Ended) -> bool:
        """The guard has ended its process: to free memory, and then it runs again, or since it took too much."""
        if ended.reserve_bytes is None and not state.should_terminate:
            declared_bytes, _ = declared(self.task, self.request_dict.get(DECLARED_HEADER))
            self.refuse(MemoryLimitExceeded(self.name, ended.used_bytes, ended.allowed_bytes, None, declared_bytes))
            return True
        if ended.reserve_bytes is None or not self._can_go_back():
            return False
        self._go_back_evicted(ended.reserve_bytes)
        return True

    def _run_with_more(self, exceeded: MemoryLimitExceeded) -> None:
        """Nobody had said what it takes, and it took more than it got: it runs again when there is room for more."""
        if self._can_go_back() and exceeded.next_bytes is not None:
            logger.info("%s", exceeded)
            self._go_back_evicted(exceeded.next_bytes)
        else:
            self.refuse(exceeded)

    def _can_go_back(self) -> bool:
        return self.task.acks_late and isinstance(self.message.channel, Channel) and not state.should_terminate

    def _go_back_evicted(self, reserve_bytes: int) -> None:
        evictions, _ = self.request_dict.get(EVICTED_HEADER) or (0, 0)
        channel, tag = self.message.channel, self.message.delivery_tag
        state.task_ready(self, successful=False)
        self._count(Outcome.EVICTED)
        channel.lease.give_back_evicted(tag, evictions + 1, reserve_bytes)
        channel.qos.forget(tag)
        self.acknowledged = True

    def _begin_again(self, error: BaseException) -> bool:
        """Run it again in another process, or bury it after its last attempt; False when this is none of ours."""
        if not self._can_go_back():
            return False
        channel = self.message.channel
        died = ProcessDied(self.name, str(error) or type(error).__name__, self.retries + self.deaths + 1)
        if not self.task.begins_again(self.retries, self.deaths + 1):
            if not self._success_was_stored():
                self._bury(died)
                return True
            if self.deaths + 1 >= _TELLS_AT_MOST:
                return False
        # One that has succeeded too: its result stands, and what comes after it may not have been told.
        logger.warning("%s; it runs again", died)
        self._count(Outcome.DIED)
        state.task_ready(self, successful=False)
        channel.lease.give_back(self.message.delivery_tag, counted=True)
        channel.qos.forget(self.message.delivery_tag)
        self.acknowledged = True
        return True

    def _bury(self, died: ProcessDied) -> None:
        """Keep it as a dead letter, fail its run, and be done with its message."""
        context = Context(self.request_dict)
        backend = self.task.backend
        try:
            letter = dead_letters.bury(backend.client, self.message, reason=str(died), attempts=died.attempts)
        except redis.RedisError:  # full, say: this is the main process, which must go on
            logger.exception("%s; it goes back to its queue, since it can't be made a dead letter now", died)
            state.task_ready(self, successful=False)
            self.reject(requeue=True)
            return
        if letter is None:
            logger.warning("%s; another worker has it by now", died)
            self._count(Outcome.PASSED_ON)
            state.task_ready(self, successful=False)
            self.acknowledge()
            return
        logger.error("%s; it is a dead letter now", died)
        self._count(Outcome.BURIED)
        if getattr(context, "agentlink_run", None):
            # The canvas around it waits: sent again and done, the letter completes its run.
            backend.store_result(self.id, died, "FAILURE", request=context)
        else:
            backend.mark_as_failure(self.id, died, request=context)
        self.send_event("task-failed", exception=repr(died), traceback=None)
        state.task_ready(self, successful=False)
        self.acknowledge()
