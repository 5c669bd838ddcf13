"""What a schedule says: which workflow is run when, from people's words, checked before anything is kept."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kombu.exceptions import EncodeError
from kombu.utils.json import dumps, loads

from agentlink.units import parse_duration, shown
from workflows import cron
from workflows.errors import ScheduleRefused

#: What becomes of a time that passed while nobody could run it: nothing, or one run for all such times.
MISSED = ("skip", "once")
#: What becomes of a time that comes while a run of the schedule's goes on: nothing; one run for all such times when
#: that has ended; or a run beside it.
OVERLAP = ("skip", "wait", "allow")

_EVERY_MIN_S = 1.0
_WORDS = ("schedule", "every", "timezone", "missed", "overlap")


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What is run when; see `define`, which checks it."""

    workflow: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    #: When: a cron expression in a time zone, or every so many ms.
    cron: str | None
    every_ms: int | None
    timezone: str | None
    missed: str
    overlap: str = "skip"  # what was kept before there was a choice has none

    def next_ms(self, after_ms: int, anchor_ms: int) -> int:
        """The first time after `after_ms`; intervals are counted from `anchor_ms`, before it or after it.

        Raises:
            ZoneUnknown: this machine does not know it.
        """
        if self.every_ms is not None:
            return anchor_ms + ((after_ms - anchor_ms) // self.every_ms + 1) * self.every_ms
        parsed, zone = cron.parse(self.cron or ""), cron.zone_of(self.timezone or "")
        return cron.next_time(parsed, zone, after_ms / 1000) * 1000


def define(
    name: str,
    workflow: str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    schedule: str | None = None,
    every: str | float | None = None,
    timezone: str | None = None,
    missed: str = "skip",
    overlap: str = "skip",
) -> Definition:
    """A definition from people's words: `schedule` is a cron expression, `every` a duration like `15m`.

    `timezone` is the machine's by default. By default too, work that takes longer than its interval does not pile up.

    Raises:
        ScheduleRefused: what makes no sense, and what would.
    """
    try:
        every_ms, timezone = _times(schedule, every, timezone)
        _check("missed", missed, MISSED)
        _check("overlap", overlap, OVERLAP)
        # As they will come to the workflow.
        args, kwargs = loads(dumps([list(args), dict(kwargs or {})]))
    except (ValueError, TypeError, EncodeError) as error:
        raise ScheduleRefused(name, str(error)) from None
    return Definition(
        workflow=workflow,
        args=args,
        kwargs=kwargs,
        cron=schedule,
        every_ms=every_ms,
        timezone=timezone,
        missed=missed,
        overlap=overlap,
    )


def timing_from(options: dict[str, Any], name: str, build: Callable[..., Any]) -> dict[str, Any] | None:
    """What a workflow's options say of when it runs, taken out of them; None: nothing.

    Raises:
        ScheduleRefused: what makes no sense, and what would.
    """
    words: dict[str, Any] = {word: options.pop(word) for word in _WORDS if word in options}
    if not words:
        return None
    define(name, name, **words)
    try:
        inspect.signature(build).bind()
    except TypeError as error:
        problem = f"it is called without arguments; {error}. `agentlink schedule add` takes arguments"
        raise ScheduleRefused(name, problem) from None
    return words


def _times(schedule: str | None, every: str | float | None, timezone: str | None) -> tuple[int | None, str | None]:
    """The interval in ms, or the name of the time zone."""
    if schedule is not None and every is None:
        cron.parse(schedule)
        return None, cron.machine_zone() if timezone is None else cron.zone_of(timezone).key
    if schedule is not None or every is None:
        raise ValueError("want either a cron expression like '0 7 * * MON' or an interval like 15m")
    if timezone is not None:
        raise ValueError("a time zone goes with a cron expression, not with an interval")
    every_s = parse_duration(every)
    if every_s < _EVERY_MIN_S:
        raise ValueError(f"want an interval of {_EVERY_MIN_S:.0f}s or more, got {shown(every)}")
    return round(every_s * 1000), None


def _check(word: str, said: str, choices: Sequence[str]) -> None:
    if said not in choices:
        raise ValueError(f"want {word} as one of {', '.join(choices)}, got {shown(said)}")
