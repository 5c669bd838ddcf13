"""What `agentlink signal` and `agentlink waiting` do: answer the steps that wait for a person or the outside."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agentlink.console import page_console
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

    If none waits for it yet, it is kept for the first that will. `agentlink waiting` lists what is waited for.
    """
    try:
        value = json.loads(payload)
    except ValueError:
        example = json.dumps(payload)
        raise click.BadParameter(f"want JSON, like 'true' or '{example}', got {payload!r}", param_hint="JSON") from None
    from agentlink import running
    from workflows import signals

    with running.broker(load()) as client:
        try:
            count = signals.send(client, run, name, value, to_all=to_all)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    if count == 0:
        click.echo(f"kept: nothing in run {run} waits for {name!r} yet")
    else:
        click.echo("a step goes on" if count == 1 else f"{count} steps go on")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def waiting(as_json: bool) -> None:
    """List the steps that wait for a signal or a time, the one that has waited longest first."""
    from agentlink import running
    from workflows import signals

    with running.broker(load()) as client:
        waits = signals.all_waits(client)
    if as_json:
        click.echo(json.dumps([asdict(wait) for wait in waits], indent=2))
    else:
        show(waits, page_console(), time.time())


def show(waits: list[Wait], console: Console, now: float) -> None:
    """Print one line a step; `now` is in seconds since 1970."""
    if not waits:
        console.print("nothing waits")
        return
    table = Table(box=None, pad_edge=False, expand=True)
    for title in ("run", "waits for", "since", "time left"):
        table.add_column(title, no_wrap=True)
    table.add_column("question", no_wrap=True, overflow="ellipsis", ratio=1)  # the others keep the width they need
    for wait in waits:
        table.add_row(
            escape(wait.run_id),
            escape(wait.name or "its time"),
            format_duration(max(0.0, now - wait.since)),
            "-" if wait.until is None else format_duration(max(0.0, wait.until - now)),
            escape(" ".join(wait.prompt.split())),
        )
    console.print(table)
