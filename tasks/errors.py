"""The errors of tasks. Leaves live beside the tasks that raise them."""

from __future__ import annotations

from agentlink.errors import AgentLinkError
from agentlink.units import format_size


class TaskError(AgentLinkError):
    """A task could not do what it was asked to; the message says what and why.

    A leaf passes its constructor's arguments on to this class unchanged and writes its sentence in `__str__`: Celery
    stores an exception as its class and `args`, and rebuilds it from those.
    """


class CallRefused(TaskError):
    """The arguments of a call don't make sense; raised where the call is made, before anything is sent."""

    def __init__(self, task: str, problem: str) -> None:
        super().__init__(task, problem)
        self.task, self.problem = task, problem

    def __str__(self) -> str:
        return f"{self.task}: {self.problem}"


class ArgumentsUnfit(CallRefused, TypeError):
    """They don't fit the parameters: one is missing, too many, or of no known name.

    Also a `TypeError`, which is what Celery, and Python itself, raise for it.
    """


class ProcessDied(TaskError):
    """The process that ran a task ended in the middle of it: killed by a signal, or by its own hand."""

    def __init__(self, task: str, how: str, attempts: int) -> None:
        super().__init__(task, how, attempts)
        self.task, self.how, self.attempts = task, how, attempts

    def __str__(self) -> str:
        return f"the process of {self.task} died (attempt {self.attempts}): {self.how}"


class ChunkTooLarge(TaskError):
    """A step has put out too much at once: it goes through the broker."""

    def __init__(self, task: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(task, size_bytes, limit_bytes)
        self.task, self.size_bytes, self.limit_bytes = task, size_bytes, limit_bytes

    def __str__(self) -> str:
        return (
            f"{self.task} emits {format_size(self.size_bytes)} of JSON at once, and {format_size(self.limit_bytes)} is "
            "the most: emit it in parts, or return it as the step's result"
        )


class MemoryLimitExceeded(TaskError, MemoryError):
    """A task, with the programs it started, took or wanted more memory than it may have.

    `next_bytes` is what is reserved for it the next time, where it is tried again; None where this is its failure.
    """

    def __init__(
        self, task: str, used_bytes: int, allowed_bytes: int, next_bytes: int | None, declared_bytes: int | None
    ) -> None:
        super().__init__(task, used_bytes, allowed_bytes, next_bytes, declared_bytes)
        self.task, self.used_bytes, self.allowed_bytes = task, used_bytes, allowed_bytes
        self.next_bytes, self.declared_bytes = next_bytes, declared_bytes

    def __str__(self) -> str:
        took = f"{self.task} had {format_size(self.used_bytes)} and wanted more than {format_size(self.allowed_bytes)}"
        if self.next_bytes is not None:
            return f"{took}; it runs again when there is room for {format_size(self.next_bytes)}"
        if self.declared_bytes is None:
            return f"{took}, which is all there is for tasks: make it smaller, or raise AGENTLINK_MEMORY"
        return (
            f"{took}, which is what @task(memory={format_size(self.declared_bytes)!r}) allows with its margin: "
            "declare what it takes at its peak"
        )
