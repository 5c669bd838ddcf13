"""The errors of workflows."""

from __future__ import annotations

from agentlink.errors import AgentLinkError
from tasks.errors import CallRefused

__all__ = ["CallRefused", "CanvasUnusable", "RunUnknown", "WorkflowError"]


class WorkflowError(AgentLinkError):
    """A workflow could not be called, built or followed."""


class RunUnknown(WorkflowError):
    """There is no run of this id: it never was, or it ended longer ago than results are kept."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self.run_id = run_id

    def __str__(self) -> str:
        return f"no run {self.run_id} is known: it never was, or it ended longer ago than keep_results"


class CanvasUnusable(WorkflowError):
    """What a workflow function returned can't be run."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return f"the canvas can't be run: {self.problem}"
