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

EVENTS_KEY = "agentlink:events"
RATE_KEY = "agentlink:events:rate"
#: How much is told: `level` and `rate` as the settings of workers say, `ordered`, the level a person has asked for; and
#: how many events are `kept`.
HOW_KEY = "agentlink:events:how"
#: So many events are kept, of steps 300 bytes each; fewer, but `KEPT_AT_LEAST`, where they would take more than about a
#: hundredth of the memory that the broker may take.
KEPT = 20_000
KEPT_AT_LEAST = 1_000
_MEMORY_AN_EVENT_BYTES = 30_000
_KEEP_S = 30 * 86400
# As orders to the guard.
_KEEP_HOW_S = 90 * 86400
#: Above the rate (events a second, unless a worker's settings say otherwise), one event in `SAMPLE` is told.
USUAL_RATE = 200
SAMPLE = 100
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

    Fields have their units in their names; `at_s` is in seconds since 1970. What is not known is left out. `always`:
    none is left out, however many there are.
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
        Kind(
            name="step-buried",  # it is a dead letter; also of a task that is a step of no run
            level=Level.BASIC,
            fields=("run_id", "step_id", "name", "reason", "attempts"),
            always=True,
        ),
        # How many of each kind were not told of in a second, since there were too many: one in `sample` was. With a
        # worker, those of Celery's own events that it has not sent.
        Kind(name="step-summary", level=Level.BASIC, fields=("second", "left_out", "sample", "worker"), always=True),
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


def _lua() -> str:
    kinds = ", ".join(f"['{kind.name}'] = {kind.level + 10 * kind.always:d}" for kind in KINDS.values())
    names = {"EVENTS": f"'{EVENTS_KEY}'", "RATE": f"'{RATE_KEY}'", "HOW": f"'{HOW_KEY}'", "KINDS": f"{{{kinds}}}"}
    names |= {"KEPT": str(KEPT), "KEEP_S": str(_KEEP_S), "SAMPLE": str(SAMPLE)}
    names |= {"FULL": f"{Level.FULL:d}", "USUAL_RATE": str(USUAL_RATE)}
    source = resources.files(__package__).joinpath("scripts", "events.lua").read_text("utf-8")
    return "".join(f"local {name} = {value}\n" for name, value in names.items()) + source


#: Lua that stands before the scripts that tell of events.
EVENTS = _lua()
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
    ordered, usual = client.hmget(HOW_KEY, ["ordered", "level"])
    return Level(int(ordered or usual or Level.FULL))


def order_level(client: redis.Redis, level: Level | None) -> None:
    """Have so much told from now on, whatever the settings say; None: what they say."""
    if level is None:
        client.hdel(HOW_KEY, "ordered")
    else:
        client.hset(HOW_KEY, "ordered", int(level))
        client.expire(HOW_KEY, _KEEP_HOW_S)


def keep_settings(client: redis.Redis, level: str, rate: int, broker_bytes: int = 0) -> None:
    """Have all processes go by what a worker's settings say, and by what the broker may take (0: what it wants)."""
    kept = min(KEPT, max(KEPT_AT_LEAST, broker_bytes // _MEMORY_AN_EVENT_BYTES)) if broker_bytes else KEPT
    client.hset(HOW_KEY, mapping={"level": int(Level[level.upper()]), "rate": rate, "kept": kept})
    client.expire(HOW_KEY, _KEEP_HOW_S)


def _cut(value: Any) -> Any:
    if isinstance(value, str) and len(value) > TEXT_MAX_CHARS:
        return value[: TEXT_MAX_CHARS - 1] + "…"
    return value
