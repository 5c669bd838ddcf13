"""Workflows: `@workflow`, the handle of a run, and the workflows that ship with AgentLink."""

from agentlink.broker.fanout import FanOutExceeded, WaitsForSteps
from workflows.base import workflow
from workflows.errors import CallRefused, RunEnded, RunUnknown, SignalTimedOut, TooManySignals, WorkflowError
from workflows.research import research
from workflows.run import Progress, WorkflowRun
from workflows.signals import Wait
from workflows.states import RunState, StepState
from workflows.store import RunRecord, StepRecord
from workflows.waiting import sleep_for, wait_for

__all__ = [
    # shipped
    "research",
    # to write and to follow
    "workflow",
    "WorkflowRun",
    "Progress",
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
    "FanOutExceeded",
    "RunEnded",
    "RunUnknown",
    "SignalTimedOut",
    "TooManySignals",
    "WaitsForSteps",
    "WorkflowError",
]
