"""What can go wrong in the guard itself. None of it may stop a worker."""

from __future__ import annotations

from agentlink.errors import AgentLinkError
from agentlink.units import format_size


class GuardError(AgentLinkError):
    """The guard can't do its work."""


class SensorError(GuardError):
    """A quantity can't be read at all, so there is nothing to decide on."""

    def __init__(self, quantity: str, reason: str) -> None:
        super().__init__(quantity, reason)
        self.quantity, self.reason = quantity, reason

    def __str__(self) -> str:
        return f"{self.quantity} can't be read: {self.reason}"


class TaskTooLarge(GuardError):
    """A task declares more than this worker may ever give it."""

    def __init__(self, task: str, what: str, wanted: float, allowed: float) -> None:
        super().__init__(task, what, wanted, allowed)
        self.task, self.what, self.wanted, self.allowed = task, what, wanted, allowed

    def __str__(self) -> str:
        if self.what == "memory":
            wanted, allowed = format_size(int(self.wanted)), format_size(int(self.allowed))
            remedy = "declare less, or raise AGENTLINK_MEMORY"
        else:
            wanted, allowed = f"{self.wanted:g} cores", f"{self.allowed:g}"
            remedy = "declare less"
        return f"{self.task} declares {self.what}={wanted!r}, and there are {allowed} at most: {remedy}"


class StorageError(GuardError):
    """A large value can't be stored, or is no longer there."""


class StorageFull(StorageError):
    """There is no room for a large value on the disk it is to be kept on."""

    def __init__(self, location: str, reason: str) -> None:
        super().__init__(location, reason)
        self.location, self.reason = location, reason

    def __str__(self) -> str:
        return f"there is no room for a large value in {self.location}: {self.reason}"


class ResultLost(StorageError):
    """A task's result was too large for the broker, and the file it was kept in is missing or broken."""

    def __init__(self, task_id: str, file: str, reason: str) -> None:
        super().__init__(task_id, file, reason)
        self.task_id, self.file, self.reason = task_id, file, reason

    def __str__(self) -> str:
        return (
            f"the result of task {self.task_id} is lost: its file {self.file} {self.reason}. Files go when they are "
            "older than AGENTLINK_KEEP_RESULTS or when AGENTLINK_DISK_QUOTA is used up, the oldest first; on several "
            "machines AGENTLINK_STORAGE must name a place that all of them share"
        )


class ArgumentLost(StorageError):
    """A task's argument was too large for its message, and the file it was kept in is missing or broken."""

    def __init__(self, task_id: str, file: str, reason: str) -> None:
        super().__init__(task_id, file, reason)
        self.task_id, self.file, self.reason = task_id, file, reason

    def __str__(self) -> str:
        return (
            f"an argument of task {self.task_id} is lost: its file {self.file} {self.reason}. Files of runs that go on "
            "and of tasks that wait stay, until somebody else removes them; on several machines AGENTLINK_STORAGE must "
            "name a place that all of them share"
        )
