"""The guard through Celery's remote control: `celery -A tasks inspect guard`, `control guard_pause`, `guard_resume`,
`guard_limits`. What is ordered is kept in the broker: it outlives workers and reaches those that start later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Annotated, Any

from celery.worker.control import control_command, inspect_command
from pydantic import TypeAdapter, ValidationError

from agentlink.settings import Settings
from agentlink.units import parse_duration, shown
from resource_guard.guard import Guard
from resource_guard.limits import CHANGEABLE
from resource_guard.steering import Orders

OFF = {"state": "off"}


@inspect_command(name="guard")
def report_guard(state: Any, **_: object) -> dict[str, object]:
    """State, readings, limits and tasks of the resource guard."""
    guard = _guard(state)
    return guard.status() if guard else dict(OFF)


@control_command(args=[("reason", str), ("duration", str)], signature="[reason [duration]]", default_timeout=2.0)
def guard_pause(state: Any, reason: str = "", duration: str | None = None, **_: object) -> dict[str, object]:
    """Start no more tasks, on all workers of this broker, until `guard_resume` or for a duration like 10m."""
    try:
        until = None if duration is None else time.time() + parse_duration(duration)
    except ValueError as error:
        return {"error": str(error)}
    return _order(state, lambda orders: replace(orders, paused=True, reason=reason, until=until))


@control_command()
def guard_resume(state: Any, **_: object) -> dict[str, object]:
    """End a pause that a person has begun; one that a limit asks for goes on."""
    return _order(state, lambda orders: replace(orders, paused=False, reason="", until=None))


@control_command(signature="[RESOURCE=LIMIT ...]", variadic="limits")
def guard_limits(state: Any, limits: list[str] | str = (), **_: object) -> dict[str, object]:  # type: ignore[assignment]
    """Hold other limits from now on, like memory=6GB cpu=50%; without any: those of the settings again."""
    guard = _guard(state)
    if guard is None:
        return dict(OFF)
    try:
        wanted = parse_limits([limits] if isinstance(limits, str) else limits)
    except ValueError as error:
        return {"error": str(error)}
    return _order(state, lambda orders: replace(orders, limits={**orders.limits, **wanted} if wanted else {}))


def parse_limits(words: Iterable[str]) -> dict[str, float]:
    """Limits by resource, from words like `memory=6GB`; they may be what the settings may be.

    Raises:
        ValueError: what was given and what would be right.
    """
    limits: dict[str, float] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in CHANGEABLE:
            raise ValueError(
                f"want RESOURCE=LIMIT, as memory=6GB, with one of {', '.join(CHANGEABLE)}; got {shown(word)}"
            )
        if name in limits:
            raise ValueError(f"{name} is given twice")
        field = Settings.model_fields[CHANGEABLE[name]]
        setting: TypeAdapter[float] = TypeAdapter(Annotated[field.annotation, *field.metadata])  # type: ignore[arg-type]
        try:
            limits[name] = setting.validate_python(value)
        except ValidationError as error:
            raise ValueError(f"{name}: {_sentence(error, value)}") from None
    return limits


def _sentence(error: ValidationError, value: str) -> str:
    problem = error.errors(include_url=False)[0]
    if problem["type"].startswith("int_"):
        return f"want a whole number, got {shown(value)}"
    message = problem["msg"].removeprefix("Value error, ")
    return message if message.startswith("want") else f"{message[0].lower()}{message[1:]}, got {shown(value)}"


def _guard(state: Any) -> Guard | None:
    guard: Guard | None = getattr(state.consumer.controller, "resource_guard", None)
    return guard


def _order(state: Any, change: Callable[[Orders], Orders]) -> dict[str, object]:
    guard = _guard(state)
    if guard is None:
        return dict(OFF)
    # What the broker keeps is changed, not what this worker knows of it, which may be a second old. Each worker does
    # it, with the same words: it is the same in the end.
    orders = state.consumer.controller.guard_broker.order(change)
    guard.steering.follow(orders)
    return {"ok": "as from the next look", "state": "paused" if guard.steering.pause_reason() else "running"}
