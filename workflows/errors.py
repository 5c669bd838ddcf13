"""The errors of workflows."""

from __future__ import annotations

from agentlink.errors import AgentLinkError
from agentlink.units import NAME_MAX, format_duration, shown
from tasks.errors import CallRefused as CallRefused


class WorkflowError(AgentLinkError):
    """A workflow could not be called, built or followed."""


class RunUnknown(WorkflowError):
    """There is no run of this id: it never was, or it ended longer ago than results are kept."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self.run_id = run_id

    def __str__(self) -> str:
        return f"no run {shown(self.run_id)} is known: it never was, or it ended longer ago than keep_results"


class RunAmbiguous(WorkflowError):
    """Several runs' ids begin so."""

    def __init__(self, prefix: str, ids: list[str]) -> None:
        super().__init__(prefix, ids)
        self.prefix, self.ids = prefix, ids

    def __str__(self) -> str:
        some = ", ".join(self.ids[:3]) + (", …" if len(self.ids) > 3 else "")
        return f"{len(self.ids)} runs' ids begin with {self.prefix!r} ({some}); give more of it"


class RunNotEnded(WorkflowError):
    """A run can't be resumed yet: it goes on, or one of its steps does."""

    def __init__(self, run_id: str, what: str) -> None:
        super().__init__(run_id, what)
        self.run_id, self.what = run_id, what

    def __str__(self) -> str:
        return f"run {self.run_id} can't be resumed now: {self.what}"


class ResumeRefused(WorkflowError):
    """A run can't be resumed as it was asked for."""

    def __init__(self, run_id: str, why: str) -> None:
        super().__init__(run_id, why)
        self.run_id, self.why = run_id, why

    def __str__(self) -> str:
        return f"run {self.run_id} can't be resumed so: {self.why}"


class CanvasChanged(WorkflowError):
    """A workflow function has built another canvas for a run than it did before; it must build the same each time.

    `place` is the first at which they differ; `was` and `now` are the tasks there, None for no step.
    """

    def __init__(self, run_id: str, place: str, was: str | None, now: str | None) -> None:
        super().__init__(run_id, place, was, now)
        self.run_id, self.place, self.was, self.now = run_id, place, was, now

    def __str__(self) -> str:
        if self.was == self.now:
            how = "they are nested in another way"
        else:
            how = f"at place {self.place} there was {self.was or 'no step'}, and now there is {self.now or 'none'}"
        return (
            f"the canvas of run {self.run_id} is not the one that was built before: {how}. A workflow function must "
            "build the same each time it gets the same arguments; what changes (time, chance, files) belongs into steps"
        )


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


class ScheduleRefused(WorkflowError):
    """A schedule can't be as it was asked for; nothing was changed."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name, problem)
        self.name, self.problem = name, problem

    def __str__(self) -> str:
        name = self.name if 0 < len(self.name) <= NAME_MAX else shown(self.name)
        return f"schedule {name}: {self.problem}"


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
        return f"no schedule is called {shown(self.name)}; known are: {', '.join(self.known) or 'none'}"
