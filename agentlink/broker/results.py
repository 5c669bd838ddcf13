"""Celery's Redis result store, subscribed to only by those who wait, and told about with every result it stores.

A recorder turns a task's change of state into broker commands, which run in the same transaction that stores the
result: whoever sees the one sees the other. Private parts of Celery 5.7 used here, held by a contract test:
`RedisBackend._store_result`, `_set`, `_add_pending_result`, `_wait_for_pending`, `_pending_results`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from celery.backends.redis import RedisBackend
from celery.result import AsyncResult, ResultSet

from agentlink.broker.transport import Command

#: What a recorder gets: task id, Celery's state, result or exception (encoded), traceback, the task's request or None.
Recorder = Callable[[str, str, Any, str | None, Any], Iterable[Command]]

_also: ContextVar[tuple[Command, ...]] = ContextVar("agentlink_result_also", default=())


class ResultBackend(RedisBackend):
    """The result backend of every AgentLink process."""

    recorders: ClassVar[list[Recorder]] = []

    def on_task_call(self, producer: object, task_id: str) -> None:
        """Subscribe to nothing yet: `get()` does when somebody waits.

        Stock Celery subscribes to each result as its call is published: two round trips a call, and a traceback for
        each result still unread when the interpreter ends.
        """

    def _add_pending_result(self, task_id: str, result: AsyncResult, weak: bool = False) -> None:
        """Remember a waiter; it subscribes when it begins to wait.

        Celery makes one for every member of a group as it freezes it: a subscription for each step of a canvas, in a
        worker that will never read any of them.
        """
        strong_waiters, weak_waiters = self._pending_results
        if weak:
            weak_waiters.setdefault(task_id, WeakValueDictionary())[id(result)] = result
        else:
            strong_waiters.setdefault(task_id, {})[id(result)] = result

    def _wait_for_pending(self, result: AsyncResult | ResultSet, **kwargs: Any) -> Any:
        for single in _singles(result):
            self.result_consumer.consume_from(single.id)
        return super()._wait_for_pending(result, **kwargs)

    def mark_as_done(
        self, task_id: str, result: Any, request: Any = None, store_result: bool = True, **kwargs: Any
    ) -> None:
        """Store the result and record the change; a task that ignores its result is recorded all the same."""
        if not store_result:
            self._record_only(task_id, "SUCCESS", None, None, request)
        super().mark_as_done(task_id, result, request=request, store_result=store_result, **kwargs)

    def mark_as_failure(
        self,
        task_id: str,
        exc: BaseException,
        traceback: str | None = None,
        request: Any = None,
        store_result: bool = True,
        **kwargs: Any,
    ) -> None:
        """Store the failure and record the change; a task that ignores its result is recorded all the same."""
        if not store_result:
            self._record_only(task_id, "FAILURE", self.prepare_exception(exc), traceback, request)
        super().mark_as_failure(task_id, exc, traceback, request=request, store_result=store_result, **kwargs)

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None, **kwargs: Any
    ) -> Any:
        token = _also.set(self._recorded(task_id, state, result, traceback, request))
        try:
            return super()._store_result(task_id, result, state, traceback=traceback, request=request, **kwargs)
        finally:
            _also.reset(token)

    def _set(self, key: str | bytes, value: str | bytes, expires: int | None = None) -> None:
        with self.client.pipeline() as pipe:
            pipe.set(key, value, ex=(self.expires if expires is None else expires) or None)
            pipe.publish(key, value)
            for command in _also.get():
                pipe.execute_command(*command)
            pipe.execute()

    def _record_only(self, task_id: str, state: str, result: Any, traceback: str | None, request: Any) -> None:
        commands = self._recorded(task_id, state, result, traceback, request)
        if commands:
            self.ensure(self._run_all, (commands,))

    def _run_all(self, commands: Iterable[Command]) -> None:
        with self.client.pipeline() as pipe:
            for command in commands:
                pipe.execute_command(*command)
            pipe.execute()

    def _recorded(self, *change: Any) -> tuple[Command, ...]:
        return tuple(command for recorder in self.recorders for command in recorder(*change))


def _singles(result: AsyncResult | ResultSet) -> Iterator[AsyncResult]:
    """The result itself, or all those below a group's, however deep."""
    if getattr(result, "results", None) is None:
        yield result
    else:
        for member in result.results:
            yield from _singles(member)
