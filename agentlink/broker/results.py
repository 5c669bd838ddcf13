"""Celery's Redis result store: one round trip a change, subscribed to only by those who wait, closed to the superseded.

A recorder turns a task's change of state into broker commands, which run in the step that stores the result: whoever
sees the one sees the other. A task whose message is no longer in flight with its worker (the worker had lost its lease)
stores nothing. Private parts of Celery 5.7 used here, held by a contract test: of `RedisBackend` `_store_result`,
`_get_result_meta`, `_add_pending_result`, `_wait_for_pending`, `_pending_results`, `_call_task_errbacks`; of
`SentinelBackend` `_get_pool`. What it does about chords is in `chord_counting`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from importlib import resources
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import redis
from celery.backends.redis import SentinelBackend
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult, ResultSet
from redis.commands.core import Script

from agentlink.broker import fanout
from agentlink.broker.along import HEADER, Stored, leave
from agentlink.broker.arguments import let_go_commands
from agentlink.broker.calls import Command
from agentlink.broker.chord_counting import ChordCounting
from agentlink.broker.errors import refuses_to_write
from agentlink.broker.exceptions import WholeExceptions, as_raised
from agentlink.broker.lease import CLAIM_PREFIX, IN_FLIGHT_PREFIX
from agentlink.broker.sentinel import SentinelConnection
from resource_guard.errors import StorageFull

logger = logging.getLogger(__name__)

#: What a recorder gets: task id, Celery's state, result or exception (encoded), traceback, the task's request or None.
Recorder = Callable[[str, str, Any, str | None, Any], Iterable[Command]]

#: A command of this name is a script, as with EVAL, that is asked before anything is stored. What it returns, if it
#: returns anything, is the outcome of storing, and nothing else is done.
ASK = "ASK"

#: How long a task waits for a broker that is away, full or read-only, to tell what it has done and what comes next.
PATIENCE_S = 300.0

#: What tells a task's turns apart.
_TURN = ("agentlink_place", "replaced_task_nesting", "retries", "agentlink_replay")

_STORE = resources.files(__package__).joinpath("scripts", "store.lua").read_text("utf-8")


class ResultBackend(WholeExceptions, ChordCounting):
    """The result backend of every AgentLink process."""

    recorders: ClassVar[list[Recorder]] = [let_go_commands]
    #: Tell of a request whether what is linked to it for its failure is called by somebody else.
    errback_keepers: ClassVar[list[Callable[[Any], bool]]] = []
    #: Called with the request, error and traceback of a task that has failed for good.
    failure_tellers: ClassVar[list[Callable[[Any, BaseException, str | None], None]]] = []
    #: Tell of a chord's body whether what is linked to it for a failure before it has been called.
    body_tellers: ClassVar[list[Callable[[Any], bool]]] = []

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
        # Celery's own check comes earlier, where it is not known whether the result is there.
        task = self.app.current_worker_task
        if task is not None and fanout.is_in_body(task.request) and not result.ready():
            raise fanout.WaitsForSteps(task.name, str(getattr(result, "id", None) or "several tasks"))
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
        exc, traceback = as_raised(exc, traceback)
        if not store_result:
            self._record_only(task_id, "FAILURE", self.prepare_exception(exc), traceback, request)
        super().mark_as_failure(task_id, exc, traceback, request=request, store_result=store_result, **kwargs)
        for tell in self.failure_tellers:
            tell(request, exc, traceback)

    def mark_as_revoked(
        self, task_id: str, reason: str = "", request: Any = None, store_result: bool = True, **kwargs: Any
    ) -> None:
        """Store and record that it was revoked; a task that ignores its result is recorded all the same."""
        if not store_result:
            self._record_only(task_id, "REVOKED", self.prepare_exception(TaskRevokedError(reason)), None, request)
        super().mark_as_revoked(task_id, reason, request=request, store_result=store_result, **kwargs)

    def _call_task_errbacks(self, request: Any, exc: BaseException | None, traceback: str | None) -> None:
        if not any(are_kept(request) for are_kept in self.errback_keepers):
            super()._call_task_errbacks(request, exc, traceback)

    def chord_error_from_stack(self, callback: Any, exc: BaseException | None = None) -> Any:
        """Fail a chord's body, since a member has failed; what is linked to it for that is called once."""
        if callback.options.get("link_error") and any(are_told(callback) for are_told in self.body_tellers):
            callback = callback.clone()
            callback.options["link_error"] = []
        return super().chord_error_from_stack(callback, exc)

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None, **kwargs: Any
    ) -> Any:
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = task_id
        expires_s = self.failure_expires if state == "FAILURE" else self.expires
        commands = self._recorded(task_id, state, result, traceback, request)
        worker, number = in_flight(request) if self._late(request) else ("", "")
        started = state == "STARTED"
        value = self.encode(meta)
        if state == "SUCCESS" and number and not commands and _stands_alone(request):
            stored = Stored(self.get_key_for_task(task_id), value, int(expires_s or 0))
            if leave(stored):
                return result
        # A retry, and what a task has replaced itself by, have the task's id and may start before it has ended.
        # So does a run's last step have the id of the task that built the run's canvas, and a step of a run that was
        # resumed that of the one before.
        turn = ":".join(str(getattr(request, name, None) or 0) for name in _TURN)
        keys = [
            self.get_key_for_task(task_id),
            IN_FLIGHT_PREFIX + worker,
            f"{CLAIM_PREFIX}{task_id}:{turn}",
        ]
        args = [value, int(expires_s or 0), number, worker, int(started), IN_FLIGHT_PREFIX]
        outcome = self.patiently(self._run, keys, args, commands).decode()
        if started and request is not None:
            request.agentlink_outcome = outcome
        if outcome == "superseded":
            logger.warning("task %s is %s here and recorded nowhere: another worker has it by now", task_id, state)
        return result

    def _late(self, request: Any) -> bool:
        """Whether a task's message is acknowledged when it has ended; else it is in flight no more while it runs."""
        task = self.app.tasks.get(getattr(request, "task", None))
        return task is None or bool(task.acks_late)

    def patiently(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function returns that speaks with the broker, or stores a file, however long one is away or full.

        It may be called several times. Only a process that has nothing else to do than its task waits: what the task
        has done is not to be lost. A worker's main process must go on.
        """
        waits_until = time.monotonic() + PATIENCE_S
        pause_s = 0.1
        while True:
            try:
                return function(*args)
            except (*self.connection_errors, redis.ResponseError, StorageFull) as error:
                if not self._may_pass(error) or time.monotonic() > waits_until:
                    raise
                what = "nothing can be stored" if isinstance(error, StorageFull) else "the broker can't be told"
                logger.warning("%s yet, trying again in %.1f s: %s", what, pause_s, error)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 5.0)

    def _may_pass(self, error: Exception) -> bool:
        """Whether this process is one that waits, and what the broker said, or its silence, is worth waiting for."""
        lasts = isinstance(error, redis.ResponseError) and not refuses_to_write(error)
        return self._waits and not lasts

    @property
    def _waits(self) -> bool:
        return self.app.current_worker_task is not None

    def _record_only(self, task_id: str, state: str, result: Any, traceback: str | None, request: Any) -> None:
        commands = self._recorded(task_id, state, result, traceback, request)
        if commands:
            self.patiently(self._run_all, commands)

    def _run(self, keys: list[str], args: list[Any], commands: list[Command]) -> bytes:
        script, numbered, asked = _composed(self.client, commands)
        outcome: bytes = script(keys=keys, args=[*args, json.dumps(numbered), json.dumps(asked)], client=self.client)
        return outcome

    def _run_all(self, commands: Iterable[Command]) -> None:
        with self.client.pipeline() as pipe:
            for command in commands:
                if command[0] != ASK:  # nothing is stored that it could forbid
                    pipe.execute_command(*command)
            pipe.execute()

    def _recorded(self, *change: Any) -> list[Command]:
        return [command for recorder in self.recorders for command in recorder(*change)]


class SentinelResultBackend(ResultBackend, SentinelBackend):
    """The same for a server behind Sentinel: each connection is made to whichever is the master then."""

    def _get_pool(self, **params: Any) -> redis.ConnectionPool:
        pool: redis.ConnectionPool = super()._get_pool(**params, connection_class=SentinelConnection)
        return pool


def in_flight(request: Any) -> tuple[str, str]:
    """The worker that has a request's message in flight, and its number there; both empty for other requests."""
    properties = getattr(request, "properties", None) or {}
    worker, _, number = str(properties.get("delivery_tag") or "").rpartition("/")
    return (worker, number) if worker else ("", "")


def _stands_alone(request: Any) -> bool:
    """Whether its main process allows a task's result to wait, and nothing comes after it or has claimed it."""
    if not getattr(request, HEADER, False) or getattr(request, "agentlink_outcome", None):
        return False
    return not (request.chord or request.chain or request.callbacks)


def _composed(client: redis.Redis, commands: Iterable[Command]) -> tuple[Script, list[list[Any]], list[list[Any]]]:
    """The script that stores a result and can run these commands, the commands, and those that are asked first.

    A script can't call another, so they are joined.
    """
    sources: list[str] = []
    numbered: list[list[Any]] = []
    asked: list[list[Any]] = []
    for command in commands:
        if command[0] not in ("EVAL", ASK):
            numbered.append([str(part) for part in command])  # Lua would write a large number as 1e+15
            continue
        if command[1] not in sources:
            sources.append(command[1])
        call = [sources.index(command[1]) + 1, command[2], *map(str, command[3:])]
        (asked if command[0] == ASK else numbered).append(call)
    return _joined(client, tuple(sources)), numbered, asked


@lru_cache(maxsize=16)
def _joined(client: redis.Redis, sources: tuple[str, ...]) -> Script:
    procedures = "\n".join(
        f"procedures[{number}] = function(KEYS, ARGV)\n{source}\nend" for number, source in enumerate(sources, start=1)
    )
    return client.register_script(f"local procedures = {{}}\n{procedures}\n{_STORE}")


def _singles(result: AsyncResult | ResultSet) -> Iterator[AsyncResult]:
    """The result itself, or all those below a group's, however deep."""
    if getattr(result, "results", None) is None:
        yield result
    else:
        for member in result.results:
            yield from _singles(member)
