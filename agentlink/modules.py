"""Importing the user's own modules, with the one line that tells which of them is broken and where."""

from __future__ import annotations

import traceback

from agentlink.errors import AgentLinkError
from agentlink.settings import Settings
from tasks import app


class ModuleBroken(AgentLinkError):
    """A module named in AGENTLINK_IMPORTS can't be imported."""

    def __init__(self, module: str, problem: str) -> None:
        super().__init__(module, problem)
        self.module, self.problem = module, problem

    def __str__(self) -> str:
        return f"{self.module} (named in AGENTLINK_IMPORTS) can't be imported: {self.problem}"


def import_all(settings: Settings) -> None:
    """Import everything a worker knows: our own tasks and workflows, and the user's.

    Raises:
        ModuleBroken: one of the user's can't be imported.
    """
    for module in settings.imports:
        try:
            app.loader.import_task_module(module)
        except Exception as error:
            raise ModuleBroken(module, _problem(error)) from error
    app.loader.import_default_modules()


def _problem(error: Exception) -> str:
    text = " ".join(str(error).split())
    problem = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    if isinstance(error, SyntaxError) or frames[-1].filename.endswith("importlib/__init__.py"):
        return problem  # it says itself where, or there is no such module
    return f"{problem} ({frames[-1].filename}, line {frames[-1].lineno})"
