"""The errors of workflows."""

from __future__ import annotations

from agentlink.errors import AgentLinkError
from agentlink.units import shown


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


class ScheduleRefused(WorkflowError):
    """A schedule can't be as it was asked for; nothing was changed."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name, problem)
        self.name, self.problem = name, problem

    def __str__(self) -> str:
        return f"schedule {self.name}: {self.problem}"


class ZoneUnknown(WorkflowError, ValueError):
    """No time zone of this name is known to this machine."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"want a time zone like 'Europe/Berlin' or 'UTC', got {shown(self.name)}"


class ScheduleUnknown(WorkflowError):
    """There is no schedule of this name."""

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(name, known)
        self.name, self.known = name, known

    def __str__(self) -> str:
        return f"no schedule is called {self.name!r}; known are: {', '.join(self.known) or 'none'}"
