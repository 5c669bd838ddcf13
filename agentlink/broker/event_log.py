"""What happens, written down in the broker in the step in which it does: a capped stream of events.

Scripts that change something `tell` of it (see `scripts/events.lua`, which stands before them); what no script changes
is told by `tell` here. Who reads the stream, and sends it on to those who listen to Celery's events, is in
`agentlink.monitoring`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from importlib import resources
from typing import Any

import redis

from agentlink.settings import load

EVENTS_KEY = "agentlink:events"
RATE_KEY = "agentlink:events:rate"
LEVEL_KEY = "agentlink:events:level"
#: So many events are kept, or a few more: of steps 300 bytes each.
KEPT = 20_000
# As long as what else is known of the past: see `resource_guard.retention`.
_KEEP_S = 30 * 86400
#: A text in an event is cut here: an event has to be small.
TEXT_MAX_CHARS = 500


class Level(IntEnum):
    """How much is told: the words of the setting `events`."""

    OFF = 0
    #: What somebody may have to do something about.
    BASIC = 1
    #: And what becomes of runs, and errors of steps.
    STANDARD = 2
    #: And each step's start and end.
    FULL = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of event: its name, from which level on it is told, what it has to say.

    Fields have their units in their names; `at_s` and whatever ends so are seconds since 1970. What is not known is left
    out. `always`: none is left out, however many there are.
    """

    name: str
    level: Level
    fields: tuple[str, ...]
    always: bool = False


_RUN = ("run_id", "workflow")
_STEP = ("run_id", "step_id", "name", "place", "attempt", "worker")
_ENDED = ("took_s", "peak_bytes", "cpu_s")
KINDS = {
    kind.name: kind
    for kind in (
        Kind(name="workflow-called", level=Level.STANDARD, fields=(*_RUN, "arguments", "agent", "parent_id")),
        Kind(name="workflow-started", level=Level.STANDARD, fields=_RUN),
        Kind(name="workflow-succeeded", level=Level.STANDARD, fields=(*_RUN, "took_s")),
        Kind(name="workflow-failed", level=Level.BASIC, fields=(*_RUN, "took_s", "step_id", "error"), always=True),
        Kind(name="workflow-cancelled", level=Level.BASIC, fields=(*_RUN, "took_s"), always=True),
        Kind(name="workflow-resumed", level=Level.STANDARD, fields=_RUN, always=True),
        Kind(name="step-started", level=Level.FULL, fields=_STEP),
        Kind(name="step-succeeded", level=Level.FULL, fields=(*_STEP, *_ENDED)),
        Kind(name="step-failed", level=Level.STANDARD, fields=(*_STEP, *_ENDED, "error"), always=True),
        Kind(name="step-retrying", level=Level.STANDARD, fields=(*_STEP, "error"), always=True),
        Kind(name="step-cancelled", level=Level.FULL, fields=_STEP),
        Kind(name="step-waiting", level=Level.STANDARD, fields=("run_id", "step_id", "name", "place", "waiting_for")),
        Kind(name="step-signalled", level=Level.STANDARD, fields=("run_id", "step_id", "signal")),
        Kind(name="step-buried", level=Level.BASIC, fields=("step_id", "name", "reason", "attempts"), always=True),
        # How many of each kind were not told of in a second, since there were too many: by kind. One in `sample` was.
        Kind(name="step-summary", level=Level.BASIC, fields=("second", "left_out", "sample"), always=True),
        Kind(name="guard-paused", level=Level.BASIC, fields=("at_s", "worker", "reason"), always=True),
        Kind(name="guard-resumed", level=Level.BASIC, fields=("at_s", "worker", "reason", "paused_s"), always=True),
        Kind(
            name="guard-level",
            level=Level.STANDARD,
            # value and limit are in the resource's unit: value_bytes, value_fraction or value_count
            fields=("at_s", "worker", "resource", "before", "after", "reason", "value_*", "limit_*", "where"),
            always=True,
        ),
        Kind(
            name="guard-evicted",
            level=Level.BASIC,
            fields=(
                *("at_s", "worker", "task_id", "task_name", "reason"),
                *("used_bytes", "reserved_bytes", "allowed_bytes", "next_bytes"),
            ),
            always=True,
        ),
        Kind(name="alert-pending", level=Level.STANDARD, fields=("alert", "severity", "text", "value"), always=True),
        Kind(name="alert-firing", level=Level.BASIC, fields=("alert", "severity", "text", "value"), always=True),
        Kind(name="alert-resolved", level=Level.BASIC, fields=("alert", "severity", "text", "value"), always=True),
        Kind(name="agent-started", level=Level.STANDARD, fields=("agent",), always=True),
        Kind(name="agent-stopped", level=Level.STANDARD, fields=("agent",), always=True),
        Kind(name="agent-failed", level=Level.BASIC, fields=("agent", "error"), always=True),
        Kind(name="agent-restarted", level=Level.BASIC, fields=("agent", "error"), always=True),
    )
}


def lua() -> str:
    """What stands before scripts that tell of events."""
    kinds = ", ".join(
        f"['{kind.name}'] = {{{kind.level:d}, {str(kind.always).lower()}}}" for kind in KINDS.values()
    )
    settings = load()
    names = {"EVENTS": f"'{EVENTS_KEY}'", "RATE": f"'{RATE_KEY}'", "LEVEL": f"'{LEVEL_KEY}'", "KINDS": f"{{{kinds}}}"}
    names |= {"KEPT": str(KEPT), "KEEP_S": str(_KEEP_S), "DEFAULT_LEVEL": f"{Level[settings.events.upper()]:d}"}
    names |= {"MOST": str(settings.events_rate), "SAMPLE": str(SAMPLE)}
    source = resources.files(__package__).joinpath("scripts", "events.lua").read_text()
    return "".join(f"local {name} = {value}\n" for name, value in names.items()) + source


#: Above the rate, one event in so many is told.
SAMPLE = 100
EVENTS = lua()
_TELL = EVENTS + "for i = 1, #ARGV, 2 do tell(ARGV[i], ARGV[i + 1]) end"


def tell(client: redis.Redis, events: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Add events to the log, each a kind and its fields, unless the level leaves them out."""
    arguments = [part for kind, facts in events for part in (KINDS[kind].name, encoded(facts))]
    if arguments:
        client.eval(_TELL, 0, *arguments)


def encoded(facts: Mapping[str, Any]) -> str:
    """An event's fields as they are kept; what is not known is left out, and texts are cut."""
    return json.dumps({name: _cut(value) for name, value in facts.items() if value is not None})


def level_now(client: redis.Redis) -> Level:
    """How much is told."""
    chosen = client.get(LEVEL_KEY)
    return Level[load().events.upper()] if chosen is None else Level(int(chosen))


def set_level(client: redis.Redis, level: Level | None) -> None:
    """Have so much told from now on, by whatever runs; None: as the settings say."""
    if level is None:
        client.delete(LEVEL_KEY)
    else:
        client.set(LEVEL_KEY, int(level), ex=90 * 86400)  # as orders to the guard


def _cut(value: Any) -> Any:
    if isinstance(value, str) and len(value) > TEXT_MAX_CHARS:
        return value[: TEXT_MAX_CHARS - 1] + "…"
    return value
