"""When a schedule comes, in a person's words."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

from agentlink.units import format_duration
from workflows.cron import zone_of
from workflows.errors import ZoneUnknown
from workflows.schedules import Schedule


def when(schedule: Schedule) -> str:
    """The times a schedule means, in a person's words."""
    definition = schedule.definition
    if definition.every_ms is None:
        return f"{definition.cron} {definition.timezone}"
    return f"every {format_duration(definition.every_ms / 1000)}"


def coming_next(schedule: Schedule) -> str:
    """When it comes next, in a person's words."""
    if schedule.paused:
        return "paused"
    return "when its run ends" if schedule.waits_ms is not None else shown(schedule, schedule.next_at)


def shown(schedule: Schedule, at: float | None) -> str:
    """A time in the schedule's time zone; in the machine's, where it has none or one that is not known here."""
    if at is None:
        return ""
    zone = None
    with contextlib.suppress(ZoneUnknown):
        zone = zone_of(schedule.definition.timezone) if schedule.definition.timezone else None
    return datetime.fromtimestamp(at, UTC).astimezone(zone).strftime("%a %Y-%m-%d %H:%M:%S %Z")
