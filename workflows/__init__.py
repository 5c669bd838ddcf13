"""Workflows: `@workflow`, the handle of a run, and the workflows that ship with AgentLink."""

from agentlink.broker.fanout import FanOutExceeded, WaitsForSteps
from workflows.base import workflow
from workflows.errors import CallRefused, RunUnknown, WorkflowError
from workflows.progress import Progress
from workflows.research import research
from workflows.run import WorkflowRun
from workflows.states import RunState, StepState
from workflows.store import RunRecord, StepRecord
from workflows.streams import StreamItem

__all__ = [
    # shipped
    "research",
    # to write and to follow
    "workflow",
    "WorkflowRun",
    "Progress",
    "StreamItem",
    # what is known of a run
    "RunRecord",
    "RunState",
    "StepRecord",
    "StepState",
    # errors
    "CallRefused",
    "FanOutExceeded",
    "RunUnknown",
    "WaitsForSteps",
    "WorkflowError",
]
