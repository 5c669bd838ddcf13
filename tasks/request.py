"""What a worker's main process knows of a task it has handed to the pool, and what it does when that ends badly.

Of `celery.worker.request.Request` 5.7, held by a contract test: `revoked`, `_apply_result`, `on_accepted`,
`on_failure`, `_context`, `message`.
"""

from __future__ import annotations

import logging
from typing import Any

import redis
from billiard.einfo import ExceptionInfo
from celery.app.task import Context
from celery.exceptions import WorkerLostError
from celery.worker import state
from celery.worker.request import Request as CeleryRequest

from agentlink.broker import dead_letters
from agentlink.broker.calls import DELIVERIES_HEADER
from agentlink.broker.celery_step import handed_over
from agentlink.broker.transport import Channel
from tasks.errors import ProcessDied

logger = logging.getLogger(__name__)


class Request(CeleryRequest):
    """A task in a worker that survives its own process and its process's death."""

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

    def acknowledge(self) -> None:
        """Be done with its message now: Celery is at its loop's next turn, and a worker that ends may have none."""
        channel = self.message.channel
        if not self.acknowledged and isinstance(channel, Channel):
            channel.lease.acknowledge(self.message.delivery_tag)
        super().acknowledge()

    def on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """The task failed, or its process died."""
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, MemoryError):
            # Celery raises it again, here in the main process, and ends the worker: it was the task's memory, not ours.
            self.task.backend.mark_as_failure(
                self.id, error, str(exc_info.traceback), request=Context(self.request_dict)
            )
            self.acknowledge()
            return None
        died = isinstance(error, (WorkerLostError, SystemExit, KeyboardInterrupt))
        if died and not self._already_cancelled and not self._already_revoked and self._begin_again(error):
            return None
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def _begin_again(self, error: BaseException) -> bool:
        """Run it again in another process, or bury it after its last attempt; False when this is none of ours."""
        channel = self.message.channel
        ours = self.task.acks_late and isinstance(channel, Channel)
        if not ours or state.should_terminate:
            return False
        died = ProcessDied(self.name, str(error) or type(error).__name__, self.retries + self.deaths + 1)
        # One that had succeeded too: its result stands, and what was to come after it may not have been told.
        if not self.task.begins_again(self.retries, self.deaths + 1):
            if self._success_was_stored():
                return False
            self._bury(died)
        else:
            logger.warning("%s; it runs again", died)
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
            state.task_ready(self, successful=False)
            self.acknowledge()
            return
        logger.error("%s; it is a dead letter now", died)
        if getattr(context, "agentlink_run", None):
            # The canvas around it waits: sent again and done, the letter completes its run.
            backend.store_result(self.id, died, "FAILURE", request=context)
        else:
            backend.mark_as_failure(self.id, died, request=context)
        state.task_ready(self, successful=False)
        self.acknowledge()
