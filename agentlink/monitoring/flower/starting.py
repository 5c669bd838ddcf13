"""A run started from a form: what each workflow wants to know, and the call made from what was filled in."""

from __future__ import annotations

import inspect
import json
import typing
from inspect import Parameter
from typing import Any

from kombu.utils.json import dumps
from tornado.web import HTTPError

from agentlink.masking import is_secret
from agentlink.modules import import_all
from agentlink.monitoring.flower.base import Change, Ours
from agentlink.run_view import find_workflow, named_arguments
from agentlink.settings import load
from tasks import app
from workflows.base import WorkflowTask


class Forms(Ours):
    """What can be started."""

    async def get(self) -> None:
        """Each workflow with its fields."""
        self.answer({"workflows": await self.told(_forms)})


class Start(Change):
    """A run is started."""

    async def post(self) -> None:
        """Call the `workflow` with `arguments`, words by the names of its parameters; answer with the run's id."""
        asked = self.asked()
        name, words = asked.get("workflow"), asked.get("arguments")
        if not isinstance(name, str) or not isinstance(words, dict):
            raise HTTPError(400, "want the name of a workflow, and its arguments by their names")
        self.answer({"run": await self.told(_start, name, words)})


def _start(name: str, words: dict[str, Any]) -> str:
    task = find_workflow(name)
    args, kwargs = named_arguments(task, words)
    run_id: str = task.delay(*args, **kwargs).id
    return run_id


def _forms() -> list[dict[str, Any]]:
    import_all(load())
    tasks = [task for task in app.tasks.values() if isinstance(task, WorkflowTask)]
    return [
        {"name": task.name, "about": (inspect.getdoc(task.build) or "").partition("\n\n")[0], "fields": _fields(task)}
        for task in sorted(tasks, key=lambda task: task.name)
    ]


def _fields(task: WorkflowTask) -> list[dict[str, Any]]:
    try:
        hints = typing.get_type_hints(task.build)
    except (NameError, TypeError):  # it names what is imported for type checkers alone
        hints = {}
    return [
        {
            "name": name,
            "kind": _kind(parameter, hints.get(name)),
            "type": _type_name(hints.get(name)),
            "needed": parameter.default is parameter.empty and parameter.kind is not Parameter.VAR_POSITIONAL,
            "default": _word(parameter.default),
        }
        for name, parameter in inspect.signature(task.build).parameters.items()
        if parameter.kind is not Parameter.VAR_KEYWORD
    ]


def _kind(parameter: Parameter, hint: Any) -> str:
    """Which field a form has for it."""
    if parameter.kind is Parameter.VAR_POSITIONAL:
        return "lines"
    if is_secret(parameter.name) and hint is str:
        return "password"
    simple = {bool: "choice", int: "number", float: "number"}
    return simple.get(hint, "text")


def _type_name(hint: Any) -> str:
    return "" if hint is None else getattr(hint, "__name__", "") if isinstance(hint, type) else str(hint)


def _word(default: Any) -> str:
    """A default as one would write it into the field."""
    if default is Parameter.empty:
        return ""
    if isinstance(default, str):
        return default
    try:
        return json.dumps(json.loads(dumps(default)), ensure_ascii=False)
    except (TypeError, ValueError):
        return ""
