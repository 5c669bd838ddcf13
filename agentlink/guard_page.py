"""How people see a worker's guard: from what it says of itself (`Guard.status`) to lines and tables."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agentlink.settings_checks import RESOURCES
from agentlink.units import format_duration, format_size

Status = Mapping[str, Any]

_STYLES = {"ok": "green", "throttle": "yellow", "pause": "bold magenta", "evict": "bold red"}
_BAR_WIDTH = 10
_ID_LENGTH = 8


def page(guards: Mapping[str, Status | None], now: float) -> Group:
    """All there is to see of these workers' guards; `now` is in seconds since 1970."""
    parts: list[RenderableType] = []
    for name, guard in guards.items():
        parts += ["", *_worker(name, guard, now)]
    return Group(*parts[1:])


def state(guard: Status | None, now: float) -> Text:
    """Whether the worker takes tasks, and if not since when and why."""
    if guard is None:
        return Text("no guard: it takes what comes", "yellow")
    if guard["state"] != "paused":
        return Text("takes tasks", "green")
    since = f"since {clock(guard['since'])} ({format_duration(max(0.0, now - guard['since']))})"
    return Text.assemble((f"takes no new tasks {since}: ", _STYLES["pause"]), _one_line(guard["reason"]))


def summary(guard: Status | None, now: float) -> Iterator[Text]:
    """In a line or two: whether the worker takes tasks, what is tight, what a person has asked for."""
    line = state(guard, now)
    if guard is None:
        yield line
        return
    readings = guard["resources"]
    tight = {resource for resource, reading in readings.items() if reading["level"] != "ok"} | {"memory", "cpu"}
    uses = [f"{resource} {use(resource, reading)}" for resource, reading in _sorted(readings) if resource in tight]
    if guard["dry_run"]:
        uses.insert(0, "dry run")
    yield line
    if uses:
        yield Text("; ".join(uses))
    yield from (Text(f"ordered: {line}") for line in orders(guard["ordered"], now))


def amount(resource: str, value: float, unit: str = "") -> str:
    """A value of this resource as people write it: `6 GB`, `50%`, `200`, `200 threads`."""
    if resource == "cpu":
        return f"{value:.1%}".replace(".0%", "%")
    if resource == "processes" or unit:
        return f"{_count(value)} {unit}".rstrip()
    return format_size(value)


def use(resource: str, reading: Status) -> str:
    """What is used of a limit, or left above a floor."""
    if reading["unit"]:
        value, limit = f"{_count(reading['value'])} {reading['unit']}", _count(reading["limit"])
    else:
        value, limit = (amount(resource, reading[name]) for name in ("value", "limit"))
    return f"{value} left, {limit} must stay" if reading["floor"] else f"{value} of {limit}"


def orders(ordered: Status, now: float) -> list[str]:
    """What a person has asked for and what still holds, a line for each."""
    lines = []
    if ordered["paused"] and (ordered["until"] is None or ordered["until"] > now):
        until = f"until {clock(ordered['until'])}" if ordered["until"] else "until `agentlink guard resume`"
        lines.append(f"paused {until}" + (f": {_one_line(ordered['reason'])}" if ordered["reason"] else ""))
    if ordered["limits"]:
        limits = ", ".join(f"{name} {amount(name, value)}" for name, value in ordered["limits"].items())
        lines.append(f"{limits} until `agentlink guard limits reset`")
    return lines


def clock(at: float) -> str:
    """The time of day, with the day if that is not today."""
    then = time.localtime(at)
    same_day = then[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S", then)


def _worker(name: str, guard: Status | None, now: float) -> Iterator[RenderableType]:
    yield Text.assemble((name, "bold"), "  ", state(guard, now))
    if guard is None:
        return
    yield _resources(guard["resources"])
    for _, reading in _sorted(guard["resources"]):
        if reading["reason"] and reading["reason"] != guard["reason"]:
            yield Text(reading["reason"], _STYLES[reading["level"]])
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column()
    for title, text in _facts(guard, now):
        facts.add_row(title, Text(text))
    yield facts
    if guard["tasks"].get("started"):
        yield _tasks(guard["tasks"]["started"])


def _resources(readings: Mapping[str, Status]) -> Table:
    table = Table(box=None, pad_edge=False, expand=True)
    for title in ("resource", "level", "", "of limit"):
        table.add_column(title, no_wrap=True, justify="left" if title else "right")
    table.add_column("use", overflow="fold", ratio=1)  # the others keep the width they need
    for resource, reading in _sorted(readings):
        style = _STYLES[reading["level"]]
        share = min(reading["fraction"], 9.99)
        table.add_row(
            resource,
            Text(reading["level"], style),
            f"{share:.0%}",
            ProgressBar(1.0, min(share, 1.0), width=_BAR_WIDTH, complete_style=style, finished_style=style),
            Text(use(resource, reading) + (f" ({reading['where']})" if reading["where"] else "")),
        )
    return table


def _facts(guard: Status, now: float) -> Iterator[tuple[str, str]]:
    tasks = guard["tasks"]
    if guard["dry_run"]:
        yield "dry run", "it only says what it would do, in the worker's log"
    for line in orders(guard["ordered"], now):
        yield "ordered", line
    if tasks:
        waiting = f", {tasks['waiting']} waiting for room" if tasks["waiting"] else ""
        fewer = f" (of {tasks['slots_most']})" if tasks["slots"] < tasks["slots_most"] else ""
        yield "tasks", f"{tasks['running']} running{waiting}, {tasks['slots']}{fewer} at a time"
        room = "no limit" if tasks["room_bytes"] is None else format_size(tasks["room_bytes"])
        yield "room", f"{room} for all tasks together, {format_size(tasks['reserved_bytes'])} of it reserved"
        if tasks["cpu_held_by"]:
            yield "cpu", f"held by {tasks['cpu_held_by']}"
    if guard["stalled"]:
        shares = ", ".join(f"{name} {percent:.0f}%" for name, percent in guard["stalled"].items())
        yield "waited", f"for {shares} of the last 10 s, somebody on this machine"
    yield "so far", ", ".join(_counts(guard)) or "no pause, nothing ended"


def _counts(guard: Status) -> Iterator[str]:
    counts, tasks = guard["counts"], guard["tasks"]
    ended = tasks.get("counts", {})
    paused_s = counts.get("paused_ms", 0) / 1000
    for count, one, many in (
        (counts.get("pauses", 0), "pause", "pauses"),
        (counts.get("alarms", 0), "alarm", "alarms"),
        (ended.get("evicted", 0), "eviction", "evictions"),
        (ended.get("failed", 0), "task failed for its memory", "tasks failed for their memory"),
        (tasks.get("replaced", 0), "idle process replaced", "idle processes replaced"),
    ):
        if count:
            took = f" ({format_duration(paused_s)})" if one == "pause" and paused_s else ""
            yield f"{count} {one if count == 1 else many}{took}"


def _tasks(started: list[Status]) -> Table:
    table = Table(box=None, pad_edge=False, expand=True)
    table.add_column("task", no_wrap=True, overflow="ellipsis", ratio=1)
    for title in ("id", "pid", "takes", "reserved", "by", "cap", "evicted"):
        table.add_column(title, no_wrap=True, justify="left" if title in ("id", "by") else "right")
    for one in started:
        reserved = one["reserved_bytes"]
        table.add_row(
            Text(one["name"].rsplit(".", 1)[-1]),
            one["id"][:_ID_LENGTH],
            str(one["pid"] or ""),
            Text(format_size(one["use_bytes"]), "yellow" if one["use_bytes"] > reserved else ""),
            format_size(reserved),
            "declared" if one["declared"] else "learned" if one["runs"] else "guessed",
            "none" if one["cap_bytes"] is None else format_size(one["cap_bytes"]),
            str(one["evictions"] or ""),
        )
    return table


def _sorted(readings: Mapping[str, Status]) -> list[tuple[str, Status]]:
    """In the order of the settings."""
    return [(resource, readings[resource]) for resource in RESOURCES if resource in readings]


def _count(value: float) -> str:
    if value < 100_000:
        return f"{value:,.0f}"
    return f"{value / 1e6:.3g} million" if value >= 1e6 else f"{value / 1e3:.0f} thousand"


def _one_line(text: str) -> str:
    return " ".join(text.split())
