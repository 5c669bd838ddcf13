"""The base of every error this project raises on purpose, and the one of its settings.

Each leaf keeps the facts a caller acts on as attributes and writes its own sentence. Its `args` are the arguments of
its constructor: that is what lets it survive the trip from a worker to its caller.
"""

from __future__ import annotations


class AgentLinkError(Exception):
    """Anything AgentLink reports to a person in one line, without a traceback."""


class SettingsError(AgentLinkError):
    """The settings can't be used; `problems` lists everything that is wrong with them."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(["the settings can't be used:", *(f"  {problem}" for problem in self.problems)])
