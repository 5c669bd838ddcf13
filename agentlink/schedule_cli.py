"""`agentlink schedule`: the schedules, for a person to read and change. Starts nothing but the runs asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import redis
from kombu.utils.json import dumps
from rich.console import Console

from agentlink.console import print_list
from agentlink.modules import import_all
from agentlink.run_view import find_workflow, parse_arguments
from agentlink.schedule_view import coming_next, shown, when
from agentlink.settings import load
from tasks import app
from workflows import ScheduleRefused, WorkflowRun, firing, schedules
from workflows.schedule_definition import define
from workflows.schedules import Schedule


def add(
    client: redis.Redis, name: str, workflow: str, words: Iterable[str], *, replace: bool, paused: bool, **timing: Any
) -> Schedule:
    """Add a schedule from the words of a command line, or give one that is there another definition.

    The arguments are checked and completed here, as a call's are: a path is one below the folder it was given in.

    Raises:
        WorkflowUnknown, CallRefused, ScheduleRefused: what makes no sense; nothing was changed.
    """
    task = find_workflow(workflow)
    given, named = parse_arguments(task, words)
    args, kwargs = task.prepared(tuple(given), named)
    definition = define(name, task.name, args, kwargs, **timing)
    schedules.put(client, name, definition, replace=replace, paused=paused)
    return schedules.read(client, name)


def remove(client: redis.Redis, name: str) -> None:
    """Forget a schedule.

    Raises:
        ScheduleUnknown: there is none of this name.
        ScheduleRefused: code declares it, and the next worker to start would add it again.
    """
    import_all(load())
    if getattr(app.tasks.get(name), "timing", None) is not None:
        raise ScheduleRefused(name, "code declares it: pause it, or take the declaration out of the code")
    schedules.remove(client, name)


def run_now(client: redis.Redis, name: str) -> WorkflowRun:
    """Start a run of a schedule's, beside those at its times.

    Raises:
        ScheduleUnknown, WorkflowMissing: there is no schedule of this name, or its workflow is not known here.
        BrokerUnavailable: nothing was accepted.
    """
    import_all(load())
    return firing.run_now(client, name)


def facts(schedule: Schedule) -> dict[str, Any]:
    """All there is of a schedule, ready for JSON. Times are seconds since 1970."""
    known = asdict(schedule)
    found: dict[str, Any] = json.loads(dumps(known.pop("definition") | known))
    return found


def coming(client: redis.Redis, name: str, count: int) -> tuple[Schedule, list[float]]:
    """A schedule and the times it comes next, or would were it not paused: seconds since 1970.

    Raises:
        ScheduleUnknown: there is none of this name.
    """
    schedule, now_ms = schedules.read(client, name), schedules.server_ms(client)
    first_ms = schedule.definition.next_ms(now_ms, now_ms)
    times_ms = [first_ms if schedule.next_at is None else round(schedule.next_at * 1000)]
    while len(times_ms) < count:
        times_ms.append(schedule.definition.next_ms(times_ms[-1], times_ms[-1]))
    return schedule, [time_ms / 1000 for time_ms in times_ms]


def show_list(found: list[Schedule], console: Console) -> None:
    """Print one line a schedule."""
    if not found:
        console.print("no schedules; `agentlink schedule add` makes one")
        return
    rows = [
        (
            schedule.name,
            schedule.definition.workflow.rsplit(".", 1)[-1],
            when(schedule),
            coming_next(schedule),
            shown(schedule, schedule.fired_at),
            schedule.run_id or "",
            _remark(schedule),
        )
        for schedule in found
    ]
    print_list(console, ("name", "workflow", "when", "next", "last", "run", "what"), rows)


def _remark(schedule: Schedule) -> str:
    """What a person should know besides."""
    if schedule.error:
        return schedule.error
    definition = schedule.definition
    said = {
        f"times skipped as its run goes on: {schedule.skipped}": schedule.skipped and definition.overlap == "skip",
        "declared in code, changed since" if schedule.changed else "declared in code": schedule.declared,
        "missed times are made up for once": definition.missed == "once",
        "its runs wait for each other": definition.overlap == "wait",
        "its runs may overlap": definition.overlap == "allow",
    }
    return ", ".join(words for words, holds in said.items() if holds)
