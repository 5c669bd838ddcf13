"""`agentlink events`: what happens, as it is told; and how much of it is told."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import click

from agentlink.console import json_option
from agentlink.settings import load
from agentlink.settings_checks import EVENT_LEVELS

_LOOK_EVERY_S = 0.2
_AT_ONCE = 500


@click.group(invoke_without_command=True)
@click.option("--kind", "kinds", multiple=True, help="Only these: step-failed, or all of a group, as workflow.")
@click.option("--count", type=click.IntRange(0, 20_000), default=20, show_default=True, help="So many of the past.")
@click.option("--follow", is_flag=True, help="Also what happens from now on, until Ctrl-C.")
@json_option
@click.pass_context
def events(context: click.Context, kinds: tuple[str, ...], count: int, follow: bool, as_json: bool) -> None:
    """List what has happened last, oldest first: runs, steps, guards, alerts."""
    if context.invoked_subcommand is not None:
        return
    from agentlink import running  # Celery takes a third of a second to import

    with running.broker(load()) as client:
        for event in _told(client, _matching(kinds), count, follow=follow):
            click.echo(_as_json(event) if as_json else _as_line(event))


@events.command()
@click.argument("level", type=click.Choice([*EVENT_LEVELS, "default"], case_sensitive=False), required=False)
def level(level: str | None) -> None:
    """Show how much is told, or have LEVEL told from now on, by all that runs; `default`: what the settings say."""
    from agentlink import running
    from agentlink.monitoring.events import Level, level_now, order_level

    with running.broker(load()) as client:
        if level is not None:
            order_level(client, None if level == "default" else Level[level.upper()])
        click.echo(f"events: {level_now(client).name.lower()}")


def _matching(words: tuple[str, ...]) -> set[str] | None:
    from agentlink.monitoring.events import KINDS

    if not words:
        return None
    matching = {kind for kind in KINDS for word in words if word == kind or kind.startswith(f"{word}-")}
    if not matching:
        raise click.BadParameter(f"want some of {', '.join(KINDS)}", param_hint="--kind")
    return matching


def _told(client: Any, kinds: set[str] | None, count: int, *, follow: bool) -> Iterator[Any]:
    from agentlink.monitoring import events as log

    since_id = log.latest_id(client)
    if count:
        yield from reversed(log.read_latest(client, count, kinds, until_id=since_id))
    while follow:
        for event in (new := log.read(client, since_id, _AT_ONCE)):
            if kinds is None or event.kind in kinds:
                yield event
        if new:
            since_id = new[-1].id
        if len(new) < _AT_ONCE:
            time.sleep(_LOOK_EVERY_S)


def _as_json(event: Any) -> str:
    return json.dumps({"id": event.id, "kind": event.kind, "at": event.at, **event.fields}, ensure_ascii=False)


def _as_line(event: Any) -> str:
    facts = " ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in event.fields.items())
    return f"{time.strftime('%H:%M:%S', time.localtime(event.at))} {event.kind:18} {facts}"
