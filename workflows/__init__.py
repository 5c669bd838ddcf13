"""Workflows: `@workflow`, the handle of a run, and the workflows that ship with AgentLink."""

from agentlink.broker.fanout import FanOutExceeded, WaitsForSteps
from tasks.app import app
from workflows import errands, schedule_step
from workflows.base import workflow
from workflows.batch import batch
from workflows.compensation import compensate
from workflows.errors import (
    CallRefused,
    CanvasChanged,
    ResumeRefused,
    RunEnded,
    RunNotEnded,
    RunUnknown,
    ScheduleRefused,
    ScheduleUnknown,
    SignalTimedOut,
    TooManySignals,
    WorkflowError,
)
from workflows.progress import Progress
from workflows.research import research
from workflows.run import WorkflowRun
from workflows.signals import Wait
from workflows.states import RunState, StepState
from workflows.steering import resume_all
from workflows.store import RunRecord, StepRecord
from workflows.streams import StreamItem
from workflows.waiting import sleep_for, wait_for

__all__ = [
    # shipped
    "compensate",
    "research",
    "batch",
    # to write and to follow
    "workflow",
    "WorkflowRun",
    "Progress",
    "resume_all",
    "StreamItem",
    "sleep_for",
    "wait_for",
    # what is known of a run
    "RunRecord",
    "RunState",
    "StepRecord",
    "StepState",
    "Wait",
    # errors
    "CallRefused",
    "CanvasChanged",
    "FanOutExceeded",
    "ResumeRefused",
    "RunNotEnded",
    "RunEnded",
    "RunUnknown",
    "SignalTimedOut",
    "TooManySignals",
    "ScheduleRefused",
    "ScheduleUnknown",
    "WaitsForSteps",
    "WorkflowError",
]

errands.install(app)
schedule_step.install(app)
