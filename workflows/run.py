"""The handle of a run: Celery's `AsyncResult`, and what a workflow adds to it."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from typing import Any

from celery.result import AsyncResult

from agentlink.broker.streams import EMIT, LOG
from tasks.app import app
from workflows import durations, signals, steering, store, streams
from workflows.errors import RunUnknown
from workflows.progress import Progress, Told, progress_of, read_told, with_told
from workflows.signals import Wait
from workflows.states import StepState
from workflows.store import RunRecord, StepRecord
from workflows.streams import StreamItem

# Each is some round trips more.
_INNER_RUNS_MAX = 20
# What is known of earlier runs changes slowly.
_EXPECTED_FOR_S = 10.0


class WorkflowRun(AsyncResult):
    """One run of a workflow: `get()`, `ready()`, `status` and `id` as in Celery, and its progress and steps.

    `WorkflowRun(id)` in any process follows a run that another one has started.
    """

    #: What earlier runs let expect, until when that is good, and the most that was seen done of this one.
    _expected: tuple[dict[str, float], float] = ({}, 0.0)
    _seen_fraction = 0.0

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
        """How far the run has come; what one handle has seen done, it never sees undone.

        Raises:
            RunUnknown: it never was, or it ended longer ago than results are kept.
        """
        return self.progress_by(self.record(), self.steps())

    def progress_by(self, record: RunRecord, steps: list[StepRecord]) -> Progress:
        """The same, for those who have read the run and its steps."""
        client = self.backend.client
        if time.monotonic() > self._expected[1]:
            names = {record.workflow, *(step.name for step in steps)}
            self._expected = durations.expected_s(client, names), time.monotonic() + _EXPECTED_FOR_S
        told = read_told(client, self.id) | self._told_by_inner_runs(steps)
        progress = progress_of(record, steps, told, self._expected[0], self._seen_fraction)
        self._seen_fraction = progress.fraction
        return progress

    def _told_by_inner_runs(self, steps: list[StepRecord]) -> dict[str, Told]:
        """How far those runs have come that are steps of this one."""
        inner = (step for step in steps if step.state is StepState.RUNNING and step.id != self.id)
        builds = (step for step in inner if getattr(app.tasks.get(step.name), "builds_canvas", False))
        told: dict[str, Told] = {}
        for step in itertools.islice(builds, _INNER_RUNS_MAX):
            with contextlib.suppress(RunUnknown):
                progress = WorkflowRun(step.id, self.backend).progress
                told[step.id] = Told(
                    fraction=progress.fraction,
                    top=progress.fraction,
                    message=progress.message,
                    at=step.started_at or 0.0,
                )
        return told

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
        client = self.backend.client
        return with_told(store.read_steps(client, self.id), read_told(client, self.id))

    def stream(self, timeout: float | None = None) -> Iterator[StreamItem]:
        """What the run's steps emit, in order: all of it from the start, then live, until the run has ended.

        A step that begins again (its process was killed, it is retried) emits again, with a higher `attempt`.
        What a workflow called as a step puts out is in its own run's stream.

        Raises:
            RunUnknown: it never was, or it ended longer ago than results are kept.
            celery.exceptions.TimeoutError: no step has said anything for `timeout` seconds.
        """
        return streams.follow(self.backend.client, self.id, (EMIT,), timeout)

    def text(self) -> str:
        """What the steps have emitted so far, as one text: of each step what its latest attempt has.

        Raises:
            RunUnknown: it never was, or it ended longer ago than results are kept.
        """
        return streams.joined(streams.said_so_far(self.backend.client, self.id, (EMIT,)))

    def logs(self) -> list[StreamItem]:
        """The lines that the steps have logged so far; `data` is the line.

        Raises:
            RunUnknown: it never was, or it ended longer ago than results are kept.
        """
        return streams.said_so_far(self.backend.client, self.id, (LOG,))

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
