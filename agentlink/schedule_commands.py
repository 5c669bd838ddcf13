"""What `agentlink schedule` does: have workflows run at times, and change that while workers run."""

from __future__ import annotations

import json
from typing import Any

import click

from agentlink.console import json_option, page_console, print_json
from agentlink.settings import load

# Celery takes a third of a second to import: what does the work is imported where needed.

_NEXT_MAX = 1_000


@click.group()
def schedule() -> None:
    """Have workflows run at certain times; workers follow at once, also those that start later."""


@schedule.command("add", context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("workflow")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--cron", "schedule", metavar="EXPRESSION", help="When, like '0 7 * * MON' or @daily.")
@click.option("--every", metavar="DURATION", help="How often instead, like 15m; the first time after that time.")
@click.option("--timezone", metavar="ZONE", help="Of --cron, like Europe/Berlin; this machine's by default.")
@click.option("--missed", default="skip", show_default=True, metavar="skip|once",
              help="Whether one run makes up for the times at which no worker was there.")  # fmt: skip
@click.option("--overlap", default="skip", show_default=True, metavar="skip|wait|allow",
              help="Whether a time is left out while a run goes on, waits for its end, or starts another.")  # fmt: skip
@click.option("--paused", is_flag=True, help="Do not run it before it is resumed.")
@click.option("--replace", is_flag=True, help="Change the schedule of this name if there is one.")
def schedule_add(name: str, workflow: str, arguments: tuple[str, ...], **options: Any) -> None:
    """Run WORKFLOW with ARGUMENTS at certain times, under the name NAME.

    Arguments are given as to `agentlink run`: in the order of the workflow's parameters, or by name: `--top 5`.
    """
    from agentlink import running, schedule_cli, schedule_view

    with running.broker(load()) as client:
        added = schedule_cli.add(client, name, workflow, arguments, **options)
        first = "paused" if added.paused else f"next {schedule_view.shown(added, added.next_at)}"
        click.echo(f"{added.name}: {schedule_view.when(added)}, {first}")


@schedule.command("list")
@json_option
def schedule_list(as_json: bool) -> None:
    """Show all schedules: when they come next, what they have started last, and what is wrong with them."""
    from agentlink import running, schedule_cli
    from workflows import schedules

    with running.broker(load()) as client:
        found = schedules.read_all(client)
    if as_json:
        print_json([schedule_cli.facts(one) for one in found])
    else:
        schedule_cli.show_list(found, page_console())


@schedule.command("remove")
@click.argument("name")
def schedule_remove(name: str) -> None:
    """Forget a schedule. What it has started goes on."""
    from agentlink import running, schedule_cli

    with running.broker(load()) as client:
        schedule_cli.remove(client, name)
        click.echo(f"{name}: removed")


@schedule.command("pause")
@click.argument("name")
def schedule_pause(name: str) -> None:
    """Have a schedule start nothing until it is resumed."""
    from agentlink import running
    from workflows import schedules

    with running.broker(load()) as client:
        schedules.pause(client, name)
        click.echo(f"{name}: paused")


@schedule.command("resume")
@click.argument("name")
def schedule_resume(name: str) -> None:
    """Have a paused schedule go on with the times to come."""
    from agentlink import running, schedule_view
    from workflows import schedules

    with running.broker(load()) as client:
        schedules.resume(client, name)
        resumed = schedules.read(client, name)
        click.echo(f"{name}: next {schedule_view.shown(resumed, resumed.next_at)}")


@schedule.command("next")
@click.argument("name")
@click.option("-n", "--count", type=click.IntRange(1, _NEXT_MAX), default=5, show_default=True, help="How many times.")
@json_option
def schedule_next(name: str, count: int, as_json: bool) -> None:
    """Show when a schedule comes next."""
    from agentlink import running, schedule_cli, schedule_view

    with running.broker(load()) as client:
        found, times = schedule_cli.coming(client, name, count)
    if as_json:
        click.echo(json.dumps(times))
        return
    for at in times:
        click.echo(schedule_view.shown(found, at))
    if found.paused:
        click.echo(f"{name} is paused: it would come then, were it resumed now", err=True)


@schedule.command("run-now")
@click.argument("name")
def schedule_run_now(name: str) -> None:
    """Start a run of a schedule's at once, beside those at its times; print the run's id."""
    from agentlink import running, schedule_cli

    with running.broker(load()) as client:
        click.echo(schedule_cli.run_now(client, name).id)
