"""What can go wrong in the guard itself. None of it may stop a worker."""

from __future__ import annotations

from agentlink.errors import AgentLinkError


class GuardError(AgentLinkError):
    """The guard can't do its work."""


class SensorError(GuardError):
    """A quantity can't be read at all, so there is nothing to decide on."""

    def __init__(self, quantity: str, reason: str) -> None:
        super().__init__(quantity, reason)
        self.quantity, self.reason = quantity, reason

    def __str__(self) -> str:
        return f"{self.quantity} can't be read: {self.reason}"
