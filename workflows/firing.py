"""Firing: what each worker does with the schedules, so that each of their times is run by exactly one.

The message that starts the run and the schedule's move to its next time reach the broker in one step, which is refused
where another has moved it: two workers can't fire the same time, and one that is killed has either fired it or not.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import redis
from kombu.utils.uuid import uuid as new_id

from agentlink.broker.calls import ALSO, Command
from agentlink.broker.errors import BrokerUnavailable, Overtaken
from agentlink.errors import AgentLinkError
from tasks.app import app
from workflows import schedule_turns, schedules, store
from workflows.base import WorkflowTask
from workflows.errors import ScheduleUnknown, WorkflowError
from workflows.run import WorkflowRun
from workflows.schedule_definition import Definition, define
from workflows.schedules import Schedule

logger = logging.getLogger(__name__)

# A time that passed longer ago is a missed one. Shorter ago it is late: the broker restarted, say, or all were busy.
LATE_MS = 60_000
# A worker that can't fire a schedule says so only when those that could have had this time for it.
_OTHERS_FIRST_MS = 3_000
# The server's clock is looked at each second; when it is back by more than this, it was set.
_SET_BACK_MS = 10_000
_LOOK_EVERY_S = 1.0
_LOOK_AGAIN_S = 0.005
_AT_ONCE = 1_000


class WorkflowMissing(WorkflowError):
    """No workflow of a schedule's is known to this process."""

    def __init__(self, workflow: str) -> None:
        super().__init__(workflow)
        self.workflow = workflow

    def __str__(self) -> str:
        return (
            f"no workflow is called {self.workflow} here; AGENTLINK_IMPORTS names the modules with your own, and "
            "`agentlink schedule remove` forgets a schedule for one that is gone"
        )


def workflow_task(name: str) -> WorkflowTask:
    """The workflow of this name.

    Raises:
        WorkflowMissing: this process knows none.
    """
    task = app.tasks.get(name)
    if not isinstance(task, WorkflowTask):
        raise WorkflowMissing(name)
    return task


def fire(definition: Definition, run_id: str, also: Iterable[Command]) -> WorkflowRun:
    """Start a run of what a schedule runs; its arguments were completed when it was made.

    Raises:
        WorkflowMissing: this process does not know the workflow.
        Overtaken: another has done it.
        BrokerUnavailable: nothing was accepted.
    """
    task = workflow_task(definition.workflow)
    options: dict[str, Any] = {ALSO: list(also)}
    return task.start_prepared(tuple(definition.args), dict(definition.kwargs), run_id, **options)


def run_now(client: redis.Redis, name: str) -> WorkflowRun:
    """Start a run of a schedule's, beside those at its times.

    Raises:
        ScheduleUnknown: there is none of this name.
        WorkflowMissing: this process does not know its workflow.
        BrokerUnavailable: nothing was accepted.
    """
    run_id, definition = new_id(), schedules.read(client, name).definition
    return fire(definition, run_id, schedule_turns.run_now_commands(name, schedules.server_ms(client), run_id))


def declared_by(task: WorkflowTask) -> Definition | None:
    """The schedule that a workflow declares in code, with the arguments that it completes itself; None: none.

    Raises:
        AgentLinkError: the workflow refuses to be called without arguments.
    """
    if task.timing is None:
        return None
    args, kwargs = task.prepared((), {})
    return define(task.name, task.name, args, kwargs, **task.timing)


class Firer:
    """A worker's look at the schedules, again and again."""

    def __init__(self, client_of_thread: Callable[[], redis.Redis]) -> None:
        """Ask nothing of the broker yet."""
        self._client_of_thread = client_of_thread
        self._seen_ms: int | None = None
        #: Of schedules that could not be fired: the time for which that was said.
        self._said: dict[str, int] = {}

    @cached_property
    def _client(self) -> redis.Redis:
        return self._client_of_thread()

    def look(self) -> float:
        """Fire what is due; return the seconds until there may be something to do again.

        Raises:
            BrokerUnavailable, redis.RedisError: the broker is away, or full; what is due stays so.
        """
        now_ms, coming = schedule_turns.due(self._client, _AT_ONCE)
        if self._seen_ms is None or now_ms < self._seen_ms - _SET_BACK_MS:
            self._begin(now_ms, coming)
            coming = schedule_turns.due(self._client, _AT_ONCE)[1]
        self._seen_ms = now_ms
        for name, due_ms in coming:
            if due_ms > now_ms:
                return min(_LOOK_EVERY_S, max(_LOOK_AGAIN_S, (due_ms - now_ms) / 1000))
            self._try(name, due_ms, now_ms)
        return _LOOK_EVERY_S

    def _begin(self, now_ms: int, coming: Sequence[tuple[str, int]]) -> None:
        """Tell what code declares, and have times come that a clock since set back has passed already."""
        for task in [task for task in app.tasks.values() if isinstance(task, WorkflowTask)]:
            try:
                definition = declared_by(task)
            except AgentLinkError as error:
                logger.warning("the schedule that %s declares is left out: %s", task.name, error)
                continue
            if definition is None:
                schedules.undeclare(self._client, task.name)
            else:
                schedules.declare(self._client, task.name, definition)
        for name, due_ms in coming:
            if due_ms > now_ms:
                with self._saying(name, due_ms, now_ms):
                    next_ms = schedules.read(self._client, name).definition.next_ms(now_ms, due_ms)
                    if next_ms < due_ms:
                        schedule_turns.move(self._client, name, due_ms, next_ms)

    def _try(self, name: str, due_ms: int, now_ms: int) -> None:
        with self._saying(name, due_ms, now_ms):
            schedule = schedules.read(self._client, name)
            definition, waits = schedule.definition, schedule.waits_ms == due_ms
            next_ms = definition.next_ms(now_ms, due_ms)
            if definition.missed == "skip" and now_ms - due_ms > LATE_MS and not waits:
                logger.warning("schedule %s: its time %s was missed, and is skipped", name, _shown(due_ms))
                schedule_turns.move(self._client, name, due_ms, next_ms)
                return
            if definition.overlap != "allow" and (run_id := self._going_on(schedule)):
                self._hold_back(schedule, run_id, due_ms, next_ms)
                return
            # The same for whoever fires this time: a clock set back runs nothing twice.
            run_id = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{schedules.schedule_key(name)}/{due_ms}"))
            fire(definition, run_id, schedule_turns.firing_commands(name, due_ms, next_ms, now_ms, run_id))
            logger.info("schedule %s: its time %s has started run %s", name, _shown(due_ms), run_id)

    def _going_on(self, schedule: Schedule) -> str | None:
        """The run of a schedule's that has yet to end, if any."""
        going_on = store.which_go_on(self._client, schedule.last_run_ids)
        return next((run_id for run_id, goes_on in going_on.items() if goes_on), None)

    def _hold_back(self, schedule: Schedule, run_id: str, due_ms: int, next_ms: int) -> None:
        """Leave out the time of a schedule, or have it wait for the end of the run that goes on."""
        if schedule.definition.overlap == "skip":
            schedule_turns.skip(self._client, schedule.name, due_ms, next_ms)
            said = "is skipped"
        elif schedule.waits_ms != due_ms:
            schedule_turns.note_waiting(self._client, schedule.name, due_ms)
            said = "waits"
        else:
            return
        logger.info("schedule %s: its time %s %s, as run %s goes on", schedule.name, _shown(due_ms), said, run_id)

    @contextlib.contextmanager
    def _saying(self, name: str, due_ms: int, now_ms: int) -> Iterator[None]:
        """One schedule that can't be fired must not hold up the others: why is said once for each of its times."""
        try:
            yield
        except (Overtaken, ScheduleUnknown):
            return  # somebody else has fired it, or it is not what it was
        except (BrokerUnavailable, redis.RedisError):
            raise
        except Exception as error:
            if now_ms - due_ms < _OTHERS_FIRST_MS or self._said.get(name) == due_ms:
                return
            self._said[name] = due_ms
            why = str(error) or type(error).__name__
            logger.exception("schedule %s is not fired: %s", name, why, exc_info=not isinstance(error, AgentLinkError))
            schedule_turns.note_error(self._client, name, due_ms, why)


def _shown(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")
