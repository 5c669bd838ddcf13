"""What `agentlink guard` does: see the guards of the workers, and steer them while they run."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterable
from typing import Any

import click
from rich.console import Console

from agentlink.console import json_option, page_console, print_json
from agentlink.settings import load
from agentlink.units import parse_duration

# Celery takes a third of a second to import: what does the work is imported where needed.


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            duration_s = parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if duration_s == 0:
            self.fail(f"want a duration above 0, got {value!r}", param, ctx)
        return duration_s


@click.group()
def guard() -> None:
    """See what the workers' guards see and do; pause them, or change their limits while they run."""


@guard.command("status")
@json_option
@click.option("--watch", is_flag=True, help="Look again each second, until Ctrl-C.")
def guard_status(as_json: bool, watch: bool) -> None:
    """Show what each guard sees and does.

    Of each worker: what is watched, the limits, the tasks that run, and what the guard has done so far.
    """
    if watch and as_json:
        raise click.UsageError("want either --watch or --json")
    if watch and not sys.stdout.isatty():
        raise click.UsageError("--watch needs a terminal; without it one look is printed")
    settings = load()
    from agentlink import guard_cli, guard_page

    if watch:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # the terminal is restored then too
        try:
            guard_cli.watch(settings, Console())
        except KeyboardInterrupt:
            return
    guards = guard_cli.look(settings)
    if as_json:
        print_json(guards)
    else:
        page_console().print(guard_page.page(guards, time.time()))


@guard.command("pause")
@click.argument("reason", nargs=-1)
@click.option("--for", "duration_s", type=_Duration(), help="End the pause by itself after so long, like 10m.")
def guard_pause(reason: tuple[str, ...], duration_s: float | None) -> None:
    """Have all workers start no more tasks.

    What runs goes on. The pause holds for workers that start later too.

    REASON is shown wherever the pause is. A second pause replaces the reason and the time of the first.
    """
    from agentlink import guard_orders, running

    with running.broker(load()) as client:
        _say(guard_orders.pause(client, _one_line(reason), duration_s))


@guard.command("resume")
def guard_resume() -> None:
    """End a pause by hand. One that a limit asks for goes on."""
    from agentlink import guard_orders, running

    with running.broker(load()) as client:
        _say(guard_orders.resume(client))


@guard.group("limits", invoke_without_command=True)
@json_option
@click.pass_context
def guard_limits(context: click.Context, as_json: bool) -> None:
    """Show the limits, or change them.

    Of each limit: what the settings say, what was ordered instead, and what the workers hold. That is less where the
    machine or a container has less.
    """
    if context.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError(f"options of `{context.invoked_subcommand}` come after it")
        return
    settings = load()
    from agentlink import guard_orders, running

    with running.broker(settings) as client:
        limits = guard_orders.limits_in_force(client, settings, running.guards())
    if as_json:
        print_json(limits)
    else:
        guard_orders.show_limits(limits, page_console())


@guard_limits.command("set")
@click.argument("limits", metavar="RESOURCE=LIMIT...", nargs=-1, required=True)
def guard_limits_set(limits: tuple[str, ...]) -> None:
    """Hold other limits than the settings say, from now on, like `memory=6GB cpu=50%`."""
    settings = load()
    from agentlink import guard_orders, running

    with running.broker(settings) as client:
        _say(guard_orders.set_limits(client, settings, limits))


@guard_limits.command("reset")
def guard_limits_reset() -> None:
    """Hold the limits of the settings again."""
    settings = load()
    from agentlink import guard_orders, running

    with running.broker(settings) as client:
        _say(guard_orders.reset_limits(client, settings))


@guard.command("profiles")
@json_option
def guard_profiles(as_json: bool) -> None:
    """Show what tasks have been measured to take.

    Of each task name: how many of its last runs were measured, what is reserved for the next, the highest peak of
    memory, and medians of the cores kept busy and the time taken.
    """
    from agentlink import guard_cli, running

    with running.broker(load()) as client:
        known = guard_cli.measured(client)
    if as_json:
        print_json(known)
    else:
        guard_cli.show_profiles(known, page_console())


def _one_line(words: Iterable[str]) -> str:
    # A word that is no text in the terminal's encoding can't be printed again either.
    return " ".join(" ".join(words).split()).encode(errors="replace").decode()


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)
