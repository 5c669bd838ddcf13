"""The errors of tasks. Leaves live beside the tasks that raise them."""

from __future__ import annotations

from agentlink.errors import AgentLinkError


class TaskError(AgentLinkError):
    """A task could not do what it was asked to; the message says what and why.

    A leaf passes its constructor's arguments on to this class unchanged and writes its sentence in `__str__`: Celery
    stores an exception as its class and `args`, and rebuilds it from those.
    """


class ProcessDied(TaskError):
    """The process that ran a task ended in the middle of it: killed by a signal, or by its own hand."""

    def __init__(self, task: str, how: str, attempts: int) -> None:
        super().__init__(task, how, attempts)
        self.task, self.how, self.attempts = task, how, attempts

    def __str__(self) -> str:
        return f"the process of {self.task} died (attempt {self.attempts}): {self.how}"
