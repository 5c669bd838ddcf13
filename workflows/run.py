"""The handle of a run: Celery's `AsyncResult`, and what a workflow adds to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery.result import AsyncResult

from tasks.app import app
from workflows import signals, store
from workflows.signals import Wait
from workflows.states import TERMINAL_RUN_STATES, RunState
from workflows.store import RunRecord, StepRecord


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run has come."""

    state: RunState
    steps_done: int
    steps_total: int  #: 0 until a worker has built the canvas

    @property
    def fraction(self) -> float:
        """Between 0 and 1."""
        if self.state is RunState.SUCCEEDED:
            return 1.0
        return self.steps_done / self.steps_total if self.steps_total else 0.0

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in TERMINAL_RUN_STATES


class WorkflowRun(AsyncResult):
    """One run of a workflow: `get()`, `ready()`, `status` and `id` as in Celery, and its progress and steps.

    `WorkflowRun(id)` in any process follows a run that another one has started.
    """

    def __init__(self, id: str, backend: Any = None, *args: Any, **kwargs: Any) -> None:  # noqa: A002 - AsyncResult's name
        super().__init__(id, backend, *args, **kwargs if len(args) > 1 else {"app": app} | kwargs)

    def record(self) -> RunRecord:
        """Everything known of the run.

        Raises:
            RunUnknown: it never was, or it ended longer ago than results are kept.
        """
        return store.read_run(self.backend.client, self.id)

    @property
    def progress(self) -> Progress:
        """How far the run has come.

        Raises:
            RunUnknown: it never was, or it ended longer ago than results are kept.
        """
        record = self.record()
        return Progress(state=record.state, steps_done=record.steps_done, steps_total=record.steps_total)

    def steps(self) -> list[StepRecord]:
        """The run's steps in the order of their places in the canvas; empty until a worker has built it."""
        return store.read_steps(self.backend.client, self.id)

    def signal(self, name: str, payload: Any = None, *, to_all: bool = False) -> bool:
        """Give a JSON payload to the step that has waited for this signal longest, or to all that wait for it now.

        True when a step goes on with it. False when none waits for it yet: it is kept, and the first that will gets it.

        Raises:
            RunUnknown, RunEnded, TooManySignals: it reaches nobody, and is not kept.
            BrokerUnavailable: the broker did not answer in time; what it has not done by then it will not do.
            ValueError: it is no name, or no payload.
        """
        with self.app.producer_or_acquire() as producer:  # its line waits no longer than a call does
            client = producer.connection.default_channel.line
            return signals.send(client, self.id, name, payload, to_all=to_all) > 0

    def waiting(self) -> list[Wait]:
        """What the run's steps wait for, the one that has waited longest first; a workflow among them has its own."""
        return signals.waits_of(self.backend.client, [self.id])
