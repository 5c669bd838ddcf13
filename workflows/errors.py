"""The errors of workflows."""

from __future__ import annotations

from agentlink.errors import AgentLinkError
from agentlink.units import format_duration, shown


class WorkflowError(AgentLinkError):
    """A workflow could not be called, built or followed."""


class CallRefused(WorkflowError):
    """The arguments of a call don't make sense; raised where the call is made, before anything is sent."""

    def __init__(self, workflow: str, problem: str) -> None:
        super().__init__(workflow, problem)
        self.workflow, self.problem = workflow, problem

    def __str__(self) -> str:
        return f"{self.workflow}: {self.problem}"


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


class RunEnded(WorkflowError):
    """The run has ended: nothing in it waits for anything any more."""

    def __init__(self, run_id: str, state: str) -> None:
        super().__init__(run_id, state)
        self.run_id, self.state = run_id, state

    def __str__(self) -> str:
        return f"run {self.run_id} has ended ({self.state}): nothing in it waits for a signal"


class TooManySignals(WorkflowError):
    """So many signals are kept for a run, and waited for by none of its steps yet, that no more are taken."""

    def __init__(self, run_id: str, limit: int) -> None:
        super().__init__(run_id, limit)
        self.run_id, self.limit = run_id, limit

    def __str__(self) -> str:
        return f"run {self.run_id} has {self.limit} signals that no step has waited for yet, and is sent no more"


class SignalTimedOut(WorkflowError):
    """A step waited for a signal, and nobody sent it in time."""

    def __init__(self, name: str, timeout_s: float) -> None:
        super().__init__(name, timeout_s)
        self.name, self.timeout_s = name, timeout_s

    def __str__(self) -> str:
        return f"nobody sent the signal {shown(self.name)} within {format_duration(self.timeout_s)}"
