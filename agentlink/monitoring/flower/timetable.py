"""The Schedules page: which workflow runs when; added, paused, resumed, run now, removed."""

from __future__ import annotations

from typing import Any

from redis import Redis
from tornado.web import HTTPError

from agentlink import schedule_cli, schedule_view
from agentlink.masking import masked_text
from agentlink.monitoring.flower.base import Change
from agentlink.monitoring.flower.stream import Stream
from agentlink.monitoring.flower.words import shown_call
from agentlink.run_view import find_workflow, named_arguments
from tasks import app
from workflows import schedules
from workflows.schedule_definition import define
from workflows.schedules import Schedule

_WORDS = ("schedule", "every", "timezone", "missed", "overlap")


class SchedulesStream(Stream):
    """All schedules, live."""

    said: list[dict[str, Any]] | None = None

    def look(self) -> dict[str, Any]:
        """All of them, if any has changed."""
        said = [_row(schedule) for schedule in schedules.read_all(self.client)]
        if said == self.said:
            return {}
        self.said = said
        return {"schedules": said}


class SchedulesChange(Change):
    """A schedule is changed, or run now."""

    async def post(self, action: str) -> None:
        """Do it to the one that is named; answer with a sentence."""
        asked = self.asked()
        name = asked.get("name")
        if not isinstance(name, str) or not name:
            raise HTTPError(400, "want the name of a schedule")
        change = {"add": _add, "pause": _pause, "resume": _resume, "run": _run, "remove": _remove}[action]
        self.answer({"said": await self.told(change, self.client, name, asked)})


def _row(schedule: Schedule) -> dict[str, Any]:
    definition, task = schedule.definition, app.tasks.get(schedule.definition.workflow)
    return {
        "name": schedule.name,
        "workflow": definition.workflow,
        "arguments": shown_call(task, definition.args, definition.kwargs),
        "when": schedule_view.when(schedule),
        "next": schedule_view.coming_next(schedule),
        "last": schedule_view.shown(schedule, schedule.fired_at),
        "paused": schedule.paused,
        "declared": schedule.declared,
        "changed": schedule.changed,
        "missed": definition.missed,
        "run_id": schedule.run_id,
        "error": masked_text(schedule.error or ""),
    }


def _add(client: Redis, name: str, asked: dict[str, Any]) -> str:
    workflow, words = asked.get("workflow"), asked.get("arguments", {})
    if not isinstance(workflow, str) or not isinstance(words, dict):
        raise HTTPError(400, "want the name of a workflow, and its arguments by their names")
    task = find_workflow(workflow)
    given, named = named_arguments(task, words)
    args, kwargs = task.prepared(tuple(given), named)
    timing = {word: asked[word] for word in _WORDS if asked.get(word)}
    schedules.put(client, name, define(name, task.name, args, kwargs, **timing))
    added = schedules.read(client, name)
    return f"{name} runs next at {schedule_view.shown(added, added.next_at)}"


def _pause(client: Redis, name: str, asked: dict[str, Any]) -> str:
    schedules.pause(client, name)
    return f"{name} is paused"


def _resume(client: Redis, name: str, asked: dict[str, Any]) -> str:
    schedules.resume(client, name)
    return f"{name} runs at its times again"


def _run(client: Redis, name: str, asked: dict[str, Any]) -> str:
    return f"run {schedule_cli.run_now(client, name).id} is queued"


def _remove(client: Redis, name: str, asked: dict[str, Any]) -> str:
    schedule_cli.remove(client, name)
    return f"{name} is removed"
