"""`agentlink runs`, `show`, `cancel` and `resume`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from agentlink.console import json_option, page_console, print_json
from agentlink.settings import load

STATES = ("QUEUED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED")


@click.command()
@click.option("--state", type=click.Choice(STATES, case_sensitive=False), help="Only runs in this state.")
@click.option("--workflow", help="Only runs of this workflow, by its full name or its last part.")
@click.option("--tag", help="Only runs with this tag.")
@click.option("--count", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many.")
@click.option("--skip", type=click.IntRange(0), default=0, help="So many newer ones are left out.")
@json_option
def runs(state: str | None, workflow: str | None, tag: str | None, count: int, skip: int, as_json: bool) -> None:
    """List runs, newest first."""
    from agentlink import running, runs_page  # Celery takes a third of a second to import
    from workflows.states import RunState

    with running.broker(load()) as client:
        wanted = RunState(state) if state else None
        found = runs_page.listed(client, state=wanted, workflow=workflow, tag=tag, count=count, skip=skip)
        if as_json:
            print_json([asdict(run) for run in found])
        else:
            runs_page.show_list(client, found, page_console())


@click.command()
@click.argument("run")
@json_option
def show(run: str, as_json: bool) -> None:
    """Show everything that is known of RUN, an id or what it begins with."""
    from agentlink import running, runs_page
    from workflows import store

    with running.broker(load()) as client:
        record = runs_page.find(client, run)
        steps = store.read_steps(client, record.id)
    if as_json:
        print_json(runs_page.everything(record, steps))
    else:
        runs_page.show(record, steps, page_console())


@click.command()
@click.argument("ids", metavar="RUN...", nargs=-1, required=True)
@click.option("--reason", default="", help="Kept with the run.")
def cancel(ids: tuple[str, ...], reason: str) -> None:
    """End each RUN: nothing more of it begins; its running steps are asked to end, and killed if they don't."""
    from agentlink import running, runs_page
    from workflows import steering

    with running.broker(load()) as client:
        for run in [runs_page.find(client, prefix) for prefix in ids]:
            cancelled = steering.cancel(client, run.id, reason)
            click.echo(f"{run.id}: {'cancelled' if cancelled else f'had ended already, {run.state}'}")


@click.command()
@click.argument("ids", metavar="[RUN]...", nargs=-1)
@click.option("--from", "from_step", help="A step (id, place or task) that runs again, and all after it.")
@click.option("--args", "with_args", help="JSON: a list or an object of arguments for that step, in place of its own; "
              "what the step before it returns still comes first.")  # fmt: skip
@click.option("--all", "all_of_them", is_flag=True, help="All failed runs, or those that --workflow and --error leave.")
@click.option("--workflow", help="Only runs of this workflow, by its full name or its last part.")
@click.option("--error", help="Only runs with this text in their error.")
@click.pass_context
def resume(context: click.Context, /, ids: tuple[str, ...], all_of_them: bool, **options: Any) -> None:
    """Go on with each RUN that has failed or was cancelled: what has succeeded stays, all else runs again."""
    from_step, with_args = options["from_step"], _arguments(options["with_args"])
    if bool(ids) == all_of_them:
        raise click.UsageError("want either ids or --all")
    if ids and (options["workflow"] or options["error"]):
        raise click.UsageError("--workflow and --error go with --all, not with ids")
    if all_of_them and (from_step or with_args is not None):
        raise click.UsageError("--from and --args go with ids, not with --all")
    from agentlink import running, runs_page
    from workflows import steering

    refused = 0
    with running.broker(load()) as client:
        if all_of_them:
            for run, why in steering.resume_all(client, workflow=options["workflow"], error=options["error"]):
                refused += why is not None
                click.echo(f"{run.id}: {why or 'goes on'}")
        for run in [runs_page.find(client, prefix) for prefix in ids]:
            steering.resume(client, run.id, from_step=from_step, with_args=with_args)
            click.echo(f"{run.id}: goes on")
    context.exit(1 if refused else 0)


def _arguments(text: str | None) -> list[Any] | dict[str, Any] | None:
    if text is None:
        return None
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"--args: {error}; want JSON like '[1, \"two\"]' or '{{\"name\": 1}}'") from None
    if not isinstance(arguments, list | dict):
        raise click.UsageError(f"--args: want a list or an object, got {text}")
    return arguments
