"""`agentlink status`: what runs here and how it is doing, as plain data and as a page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import redis
from kombu.exceptions import OperationalError
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from agentlink import guard_page, running, schedule_view
from agentlink import up as up_process
from agentlink.broker import dead_letters, limits, queues, server
from agentlink.console import print_list
from agentlink.settings import Settings
from agentlink.units import format_duration, format_size
from tasks import app
from workflows import schedules, store

RUNS_SHOWN = 10
LIMITS_SHOWN = 10
SCHEDULES_SHOWN = 5


def collect(settings: Settings) -> dict[str, Any]:
    """Everything `status` knows, ready for JSON. Starts nothing."""
    facts: dict[str, Any] = {
        "home": str(settings.home),
        "up": up_process.read_state(settings),
        "broker": {"address": settings.shown_url, "running": False, "why": _why_embedded_is_away(settings)},
        "workers": [],
        "queues": [],
        "limits": [],
        "in_flight": 0,
        "dead_letters": 0,
        "schedules": [],
        "runs": [],
    }
    if facts["broker"]["why"]:
        return facts
    try:
        facts["broker"] = _broker(settings)
        facts["runs"], facts["schedules"] = _runs(), _schedules()
        facts["workers"] = _workers()
        names = {queue for worker in facts["workers"] for queue in worker["queues"]} | {app.conf.task_default_queue}
        client = app.backend.client
        facts["queues"] = queues.lengths(client, sorted(names))
        facts["limits"] = limits.waiting(client)
        facts["in_flight"], facts["dead_letters"] = queues.in_flight(client), dead_letters.count(client)
    except (redis.RedisError, OperationalError, OSError) as error:
        facts["broker"] = {"address": settings.shown_url, "running": False, "why": str(error)}
    return facts


def _why_embedded_is_away(settings: Settings) -> str:
    """Why the embedded broker need not be asked anything: Celery's client would wait for an answer for long."""
    if not settings.embedded or server.is_running(settings):
        return ""
    pid = server.holder(settings)
    return f"pid {pid} does not answer; its log is {server.log_path(settings)}" if pid else "the first call starts it"


def _broker(settings: Settings) -> dict[str, Any]:
    info: dict[str, Any] = app.backend.client.info()
    return {
        "address": settings.shown_url,
        "running": True,
        "embedded": settings.embedded,
        "version": f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}",
        "pid": info["process_id"],
        "memory_bytes": info["used_memory"],
        "memory_limit_bytes": info["maxmemory"] or None,
        "up_s": info["uptime_in_seconds"],
    }


def _workers() -> list[dict[str, Any]]:
    """Those that answer in time: a worker whose main process hangs is not in the list."""
    inspect = app.control.inspect(timeout=running.ASK_S)
    stats = inspect.stats() or {}
    if not stats:
        return []
    names = sorted(stats)
    inspect = app.control.inspect(destination=names, timeout=running.ASK_S)
    queues, active, guards = inspect.active_queues() or {}, inspect.active() or {}, running.guards(names)
    return [
        {
            "name": name,
            "pid": stats[name]["pid"],
            "concurrency": stats[name]["pool"].get("max-concurrency"),
            "running": len(active.get(name, [])),
            "queues": [queue["name"] for queue in queues.get(name, [])],
            "guard": guards.get(name),
        }
        for name in names
    ]


def _runs() -> list[dict[str, Any]]:
    return [
        {
            "id": run.id,
            "workflow": run.workflow,
            "arguments": run.arguments,
            "state": run.state,
            "called_at": run.called_at,
            "steps_done": run.steps_done,
            "steps_total": run.steps_total,
            "took_s": (run.ended_at or time.time()) - run.called_at,
            "error": (run.failure or {}).get("error"),
        }
        for run in store.latest_runs(app.backend.client, RUNS_SHOWN)
    ]


def _schedules() -> list[dict[str, Any]]:
    """The one that comes next first, the paused ones last."""
    client = app.backend.client
    found = sorted(schedules.read_all(client), key=lambda one: (one.next_at is None, one.next_at, one.name))
    states = store.states_of(client, [one.run_id or "" for one in found])
    return [
        {
            "name": one.name,
            "workflow": one.definition.workflow,
            "when": schedule_view.when(one),
            "next_at": one.next_at,
            "next": schedule_view.coming_next(one),
            "paused": one.paused,
            "fired_at": one.fired_at,
            "run_id": one.run_id,
            "run_state": states.get(one.run_id or ""),
            "skipped": one.skipped,
            "error": one.error,
        }
        for one in found
    ]


def show(facts: dict[str, Any], console: Console) -> None:
    """Print the facts for a person."""
    up, broker = facts["up"], facts["broker"]
    console.print(f"home      {facts['home']}", highlight=False)
    console.print(f"up        {_up_line(up)}", highlight=False, soft_wrap=True)
    if not broker["running"]:
        console.print(f"broker    not running: {escape(broker['why'])}", highlight=False, soft_wrap=True)
        return
    limit = f" of {format_size(broker['memory_limit_bytes'])}" if broker["memory_limit_bytes"] else ""
    console.print(
        f"broker    {broker['version']}, pid {broker['pid']}, {format_size(broker['memory_bytes'])}{limit}, "
        f"up {format_duration(broker['up_s'])}",
        highlight=False,
    )
    if not facts["workers"]:
        console.print("workers   none answers")
    for worker in facts["workers"]:
        console.print(
            f"worker    {worker['name']}, pid {worker['pid']}, {worker['running']} of {worker['concurrency']} busy, "
            f"queues {', '.join(worker['queues'])}",
            highlight=False,
        )
        for line in guard_page.summary(worker["guard"], time.time()):
            console.print(Text.assemble("guard     ", line), soft_wrap=True)
    for queue in facts["queues"]:
        later = f", {queue['delayed']} for later" if queue["delayed"] else ""
        limited = f", {queue['limited']} at a limit" if queue["limited"] else ""
        console.print(f"queue     {queue['name']}: {queue['waiting']} waiting{later}{limited}", highlight=False)
    for limit in facts["limits"][:LIMITS_SHOWN]:
        said = f"{escape(limit['key'])} in {limit['queue']}: {limit['waiting']} waiting, {limit['held']} with workers"
        console.print(f"limit     {said}", highlight=False, soft_wrap=True)
    console.print(f"in flight {facts['in_flight']}", highlight=False)
    if facts["dead_letters"]:
        console.print(f"dead      {facts['dead_letters']}: `agentlink dead` lists them", highlight=False)
    for said in _schedule_lines(facts["schedules"]):
        console.print(f"schedule  {said}", highlight=False, soft_wrap=True)
    _show_runs(facts["runs"], console)


def _schedule_lines(found: list[dict[str, Any]]) -> Iterator[str]:
    for one in found[:SCHEDULES_SHOWN]:
        last = f", last run {one['run_state'] or 'forgotten'}" if one["run_id"] else ""
        skipped = f", {one['skipped']} skipped since" if one["skipped"] else ""
        wrong = f", not fired: {one['error']}" if one["error"] else ""
        coming = one["next"] if one["paused"] else f"next {one['next']}"
        yield escape(f"{one['name']}: {coming}{last}{skipped}{wrong}")
    if len(found) > SCHEDULES_SHOWN:
        yield f"{len(found) - SCHEDULES_SHOWN} more: `agentlink schedule list` shows them"


def _up_line(up: dict[str, Any] | None) -> str:
    if up is None:
        return "no; `agentlink up` starts it"
    phase = "" if up["state"] == "up" else f"{up['state']}, "
    return f"{phase}pid {up['pid']}, Flower: {up['flower'] or 'off'}"


def _show_runs(runs: list[dict[str, Any]], console: Console) -> None:
    if not runs:
        return
    rows = [
        (
            run["id"],
            run["workflow"].rsplit(".", 1)[-1],
            run["state"],
            f"{run['steps_done']}/{run['steps_total']}",
            format_duration(run["took_s"]),
            (run["error"] or run["arguments"])[:80],
        )
        for run in runs
    ]
    print_list(console, ("run", "workflow", "state", "steps", "time", "what"), rows)
