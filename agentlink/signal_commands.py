"""What `agentlink signal` and `agentlink waiting` do: answer the steps that wait for a person or the outside."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.console import Console

from agentlink.console import json_option, page_console, print_json, print_list
from agentlink.settings import load
from agentlink.units import format_duration

if TYPE_CHECKING:
    from workflows import Wait

# Celery takes a third of a second to import: what does the work is imported where needed.


@click.command("signal")
@click.argument("run")
@click.argument("name")
@click.argument("payload", metavar="[JSON]", default="null")
@click.option("--to-all", is_flag=True, help="Give it to every step that waits for it now.")
def signal_run(run: str, name: str, payload: str, to_all: bool) -> None:
    """Send RUN the signal NAME: the step that has waited for it longest goes on with JSON as its result.

    RUN is an id or what it begins with. If no step waits for the signal yet, it is kept for the first that will.
    `agentlink waiting` lists what is waited for.
    """
    try:
        value = json.loads(payload)
    except ValueError:
        example = json.dumps(payload)
        raise click.BadParameter(f"want JSON, like 'true' or '{example}', got {payload!r}", param_hint="JSON") from None
    from agentlink import running, runs_page
    from workflows import signals

    with running.broker(load()) as client:
        run_id = runs_page.find(client, run).id
        try:
            count = signals.send(client, run_id, name, value, to_all=to_all)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        waited_for = {wait.name for wait in signals.waits_of(client, [run_id]) if wait.name}
    if count == 0:
        instead = f"; it waits for {', '.join(map(repr, sorted(waited_for)))}" if waited_for else ""
        click.echo(f"kept: nothing in run {run_id} waits for {name!r} yet{instead}")
    else:
        click.echo("a step goes on" if count == 1 else f"{count} steps go on")


@click.command()
@json_option
def waiting(as_json: bool) -> None:
    """List the steps that wait for a signal or a time, the one that has waited longest first."""
    from agentlink import running
    from workflows import signals

    with running.broker(load()) as client:
        waits = signals.all_waits(client)
    if as_json:
        print_json([asdict(wait) for wait in waits])
    else:
        show(waits, page_console(), time.time())


def show(waits: list[Wait], console: Console, now: float) -> None:
    """Print one line a step; `now` is in seconds since 1970."""
    if not waits:
        console.print("nothing waits")
        return
    rows = [
        (
            wait.run_id,
            wait.name or "its time",
            format_duration(max(0.0, now - wait.since)),
            "-" if wait.until is None else format_duration(max(0.0, wait.until - now)),
            wait.prompt,
        )
        for wait in waits
    ]
    print_list(console, ("run", "waits for", "since", "time left", "question"), rows)
