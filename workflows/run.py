"""The handle of a run: Celery's `AsyncResult`, and what a workflow adds to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery.result import AsyncResult

from tasks.app import app
from workflows import steering, store
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

    def cancel(self, reason: str = "") -> bool:
        """End the run, and the runs below it: nothing more of it begins; running steps get a soft signal, then a kill.

        False when it had ended already.

        Raises:
            RunUnknown: it never was, or it ended longer ago than results are kept.
        """
        return steering.cancel(self.backend.client, self.id, reason)

    def resume(
        self, *, from_step: str | None = None, with_args: steering.Arguments | None = None, timeout_s: float = 30.0
    ) -> WorkflowRun:
        """Go on with a run that has failed or was cancelled; see `workflows.steering.resume`. Returns the run itself.

        Raises:
            RunUnknown: it never was, or it ended longer ago than results are kept.
            RunNotEnded: it goes on, or one of its steps does.
            ResumeRefused: the step is not there, or it is a step of another run, which is to be resumed.
        """
        steering.resume(self.backend.client, self.id, from_step=from_step, with_args=with_args, timeout_s=timeout_s)
        # What was known of its result is no longer so, here and in the backend.
        self.backend._cache.pop(self.id, None)
        super().__init__(self.id, self.backend, app=self.app)
        return self

    def steps(self) -> list[StepRecord]:
        """The run's steps in the order of their places in the canvas; empty until a worker has built it."""
        return store.read_steps(self.backend.client, self.id)
