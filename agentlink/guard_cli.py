"""`agentlink guard status` and `profiles`: what the guards see and do, and what tasks have taken. Starts nothing."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import redis
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agentlink import guard_page, running
from agentlink.broker import profiles
from agentlink.broker.errors import BrokerNotRunning
from agentlink.errors import AgentLinkError
from agentlink.settings import Settings
from agentlink.units import format_duration, format_size

WATCH_EVERY_S = 1.0
#: While watching, all workers are given time to answer so often; in between, those that are known.
_LOOK_FOR_NEW_EVERY = 5


class NoWorkerAnswers(AgentLinkError):
    """No worker runs, or all of them hang."""

    def __str__(self) -> str:
        return "no worker answers; `agentlink up` starts one"


def look(settings: Settings) -> running.Guards:
    """What the guard of each worker says.

    Raises:
        NoWorkerAnswers: there is nothing to show.
    """
    with running.broker(settings):
        guards = running.guards()
    if not guards:
        raise NoWorkerAnswers
    return guards


def watch(settings: Settings, console: Console) -> None:
    """Show what the guards say, anew each second, until Ctrl-C; whatever is away may come back meanwhile."""
    known, looks = 0, 0
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            began = time.monotonic()
            try:
                with running.broker(settings):
                    guards = running.guards(expected=known if looks % _LOOK_FOR_NEW_EVERY else None)
                shown: RenderableType = guard_page.page(guards, time.time())
                if not guards:
                    shown = Text("no worker answers; one that starts appears here")
            except BrokerNotRunning as error:
                guards, shown = {}, Text(str(error))
            known, looks = len(guards), looks + 1
            title = Text(f"{time.strftime('%H:%M:%S')}  Ctrl-C ends", "dim")
            live.update(Group(title, "", shown), refresh=True)
            time.sleep(max(0.0, began + WATCH_EVERY_S - time.monotonic()))


def measured(client: redis.Redis) -> list[dict[str, Any]]:
    """What tasks have been measured to take, the most recently run first, ready for JSON."""
    return [asdict(profile) for profile in profiles.profiles(client)]


def show_profiles(known: list[dict[str, Any]], console: Console) -> None:
    """Print one line a task name."""
    if not known:
        console.print("no task has been measured yet")
        return
    table = Table(box=None, pad_edge=False, expand=True)
    table.add_column("task", no_wrap=True, overflow="ellipsis", ratio=1)  # the others keep the width they need
    for title in ("runs", "reserved", "peak", "cores", "time"):
        table.add_column(title, no_wrap=True, justify="right")
    for profile in known:
        table.add_row(
            Text(profile["name"]),
            str(profile["runs"]),
            format_size(profile["memory_bytes"]),
            format_size(profile["peak_bytes"]),
            f"{profile['cpu_cores']:.2f}",
            format_duration(profile["wall_s"]),
        )
    console.print(table)
