"""The states of runs and steps: one enum each, one transition table each. Terminal sets are derived from the tables."""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    """Where a run stands."""

    QUEUED = "QUEUED"  #: accepted by the broker; no worker has begun it
    RUNNING = "RUNNING"  #: a worker has built its canvas, or is doing so
    SUCCEEDED = "SUCCEEDED"  #: its last step has returned the run's result
    FAILED = "FAILED"  #: a step, or the building of the canvas, ended with an error
    CANCELLED = "CANCELLED"  #: ended on request before it was done


class StepState(StrEnum):
    """Where a step stands."""

    WAITING = "WAITING"  #: planned; its message may be queued, still to come, or put aside until a signal or a time
    RUNNING = "RUNNING"  #: a worker's process is in its body
    RETRYING = "RETRYING"  #: an attempt failed or its process died; another is queued
    SUCCEEDED = "SUCCEEDED"  #: its result is stored
    FAILED = "FAILED"  #: its last attempt ended with an error
    CANCELLED = "CANCELLED"  #: withdrawn before it began, as its run ended badly; or revoked before it ended


RUN_TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    RunState.QUEUED: frozenset({RunState.RUNNING, RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED}),
    RunState.RUNNING: frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED}),
    RunState.SUCCEEDED: frozenset(),
    RunState.FAILED: frozenset(),
    RunState.CANCELLED: frozenset(),
}

STEP_TRANSITIONS: dict[StepState, frozenset[StepState]] = {
    StepState.WAITING: frozenset(
        {StepState.RUNNING, StepState.RETRYING, StepState.SUCCEEDED, StepState.FAILED, StepState.CANCELLED}
    ),
    # RUNNING again: its message was delivered a second time after its worker had died. WAITING: see `wait_for`.
    StepState.RUNNING: frozenset(StepState),
    StepState.RETRYING: frozenset(
        {StepState.RUNNING, StepState.RETRYING, StepState.SUCCEEDED, StepState.FAILED, StepState.CANCELLED}
    ),
    StepState.SUCCEEDED: frozenset(),
    StepState.FAILED: frozenset(),
    StepState.CANCELLED: frozenset(),
}

#: Where a run that is resumed comes from and goes to, and its steps; nothing else leaves a terminal state.
RUN_RESETS: dict[RunState, RunState] = {
    RunState.FAILED: RunState.QUEUED,
    RunState.CANCELLED: RunState.QUEUED,
    RunState.SUCCEEDED: RunState.QUEUED,
}
STEP_RESETS: dict[StepState, StepState] = {
    StepState.FAILED: StepState.WAITING,
    StepState.CANCELLED: StepState.WAITING,
    StepState.RETRYING: StepState.WAITING,
    StepState.SUCCEEDED: StepState.WAITING,
}

TERMINAL_RUN_STATES = frozenset(state for state, after in RUN_TRANSITIONS.items() if not after)
TERMINAL_STEP_STATES = frozenset(state for state, after in STEP_TRANSITIONS.items() if not after)

#: What a task's Celery state says of its step.
STEP_STATE_OF_CELERY = {
    "STARTED": StepState.RUNNING,
    "RETRY": StepState.RETRYING,
    "SUCCESS": StepState.SUCCEEDED,
    "FAILURE": StepState.FAILED,
    "REVOKED": StepState.CANCELLED,
}
#: What it says of the run whose id the task has.
RUN_STATE_OF_CELERY = {
    "STARTED": RunState.RUNNING,
    "SUCCESS": RunState.SUCCEEDED,
    "FAILURE": RunState.FAILED,
    "REVOKED": RunState.CANCELLED,
}
