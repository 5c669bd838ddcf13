"""`agentlink guard pause`, `resume` and `limits`: what a person asks of all workers, and what comes of it.

It is kept in the broker; each worker looks there once a second, those that start later do so at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import redis
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentlink import guard_page, running
from agentlink.broker import guard_watch
from agentlink.errors import AgentLinkError
from agentlink.settings import Settings
from resource_guard.control import parse_limits
from resource_guard.limits import CHANGEABLE, Limits
from resource_guard.steering import Orders

#: A worker that has not followed by then is named.
FOLLOW_S = 3.0


class LimitsRefused(AgentLinkError):
    """These limits can't be asked for; nothing has been changed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked of all workers before, what is from now on, and what their guards say then."""

    before: Orders
    after: Orders
    guards: running.Guards

    @property
    def following(self) -> list[str]:
        """The workers that follow."""
        return [name for name, guard in self.guards.items() if guard and _follows(guard, self.after)]

    def others(self) -> Iterator[str]:
        """A sentence for each worker that does not follow."""
        for name, guard in self.guards.items():
            if guard is None:
                yield f"{name} has no guard and goes on as before"
            elif not _follows(guard, self.after):
                yield f"{name} does not follow yet; `agentlink guard status` shows when it does"
            elif guard["dry_run"]:
                yield f"{name} is on a dry run: it says what it would do and goes on as before"


def pause(client: redis.Redis, reason: str, duration_s: float | None) -> Iterator[str]:
    """Have all workers start nothing more, for so long or until they are told to go on; yield what comes of it."""
    until = None if duration_s is None else time.time() + duration_s
    asked = _ask(client, lambda orders: replace(orders, paused=True, reason=reason, until=until))
    yield from guard_page.orders(asdict(replace(asked.after, limits={})), time.time())
    if not asked.guards:
        yield "no worker answers; those that start will take no new tasks"
    if paused := [name for name in asked.following if (asked.guards[name] or {})["state"] == "paused"]:
        yield f"{_workers(paused)} no new tasks, nor will those that start later; what runs goes on"
    yield from asked.others()


def resume(client: redis.Redis) -> Iterator[str]:
    """End a pause that a person has asked for; yield what comes of it."""
    asked = _ask(client, lambda orders: replace(orders, paused=False, reason="", until=None))
    was_paused = bool(guard_page.orders(asdict(replace(asked.before, limits={})), time.time()))
    yield "resumed" if was_paused else "nobody had paused the workers"
    if not asked.guards:
        yield "no worker answers; those that start will take tasks"
        return
    go_on = [name for name in asked.following if (asked.guards[name] or {})["state"] != "paused"]
    if go_on:
        yield f"{_workers(go_on)} tasks"
    for name in asked.following:
        guard = asked.guards[name] or {}
        if guard["state"] == "paused":
            yield f"{name} stays paused by a limit: {guard['reason']}"
    yield from asked.others()


def limits_in_force(client: redis.Redis, settings: Settings, guards: running.Guards) -> list[dict[str, Any]]:
    """Each limit that can be changed: what the settings say, what a person has asked for, what each worker holds."""
    ordered = guard_watch.ordered(client).limits
    return [
        {
            "resource": resource,
            "settings": _of_settings(settings, resource),
            "ordered": ordered.get(resource),
            "held": {
                name: {key: reading[key] for key in ("limit", "unit", "where")}
                for name, guard in guards.items()
                if guard and (reading := guard["resources"].get(resource))
            },
        }
        for resource in CHANGEABLE
    ]


def show_limits(limits: list[dict[str, Any]], console: Console) -> None:
    """Print them, with what workers hold where that is not what was asked for."""
    table = Table(box=None, pad_edge=False)
    for title in ("limit", "settings", "ordered", "held"):
        table.add_column(title, no_wrap=title != "held", overflow="fold")
    for limit in limits:
        resource, ordered = limit["resource"], limit["ordered"]
        held = {
            name: _held(resource, reading) + (" is nearer" if reading["unit"] else "")
            for name, reading in limit["held"].items()
        }
        table.add_row(
            resource,
            guard_page.amount(resource, limit["settings"]),
            "" if ordered is None else guard_page.amount(resource, ordered),
            Text(_held_by(held)),
        )
    console.print(table)
    if any(limit["ordered"] is not None for limit in limits):
        console.print("What is ordered lasts until `agentlink guard limits reset`.", highlight=False)


def _held_by(held: Mapping[str, str]) -> str:
    """What workers hold, once if it is the same."""
    if len(set(held.values())) == 1:
        return next(iter(held.values()))
    return "\n".join(f"{limit} by {name}" for name, limit in held.items()) or "by no worker"


def set_limits(client: redis.Redis, settings: Settings, words: Iterable[str]) -> Iterator[str]:
    """Have all workers hold other limits, given as `memory=6GB`; yield what comes of it.

    Raises:
        LimitsRefused: a word makes no sense; nothing is asked of anybody.
    """
    try:
        wanted = parse_limits(words)
    except ValueError as error:
        raise LimitsRefused(str(error)) from None
    asked = _ask(client, lambda orders: replace(orders, limits={**orders.limits, **wanted}))
    yield from _changes(asked, settings, wanted)
    yield "This lasts until `agentlink guard limits reset`, for workers that start later too (kept for 90 days)."
    if not asked.guards:
        yield "no worker answers; those that start will hold these limits"
    for name in asked.following:
        yield from _held_otherwise(name, asked.guards[name] or {}, wanted)
    yield from asked.others()


def reset_limits(client: redis.Redis, settings: Settings) -> Iterator[str]:
    """Have all workers hold the limits of their settings again; yield what comes of it."""
    asked = _ask(client, lambda orders: replace(orders, limits={}))
    if not asked.before.limits:
        yield "the limits are those of the settings already"
        return
    yield from _changes(asked, settings, asked.before.limits)
    if not asked.guards:
        yield "no worker answers; those that start will hold the limits of their settings"
    yield from asked.others()


def _changes(asked: Asked, settings: Settings, resources: Iterable[str]) -> Iterator[str]:
    for resource in resources:
        before, after = (
            guard_page.amount(resource, orders.limits.get(resource, _of_settings(settings, resource)))
            for orders in (asked.before, asked.after)
        )
        yield f"{resource:<11} {before} → {after}"


def _held_otherwise(name: str, guard: Mapping[str, Any], wanted: Mapping[str, float]) -> Iterator[str]:
    """Where a worker can't hold what was asked for, or has come over it by that."""
    for resource, value in wanted.items():
        reading = guard["resources"].get(resource)
        if reading is None:
            yield f"{name} does not watch {resource}, or can't read it at the moment"
        elif reading["limit"] != value:
            yield f"{name}: {resource} {guard_page.amount(resource, value)} {_why_otherwise(resource, reading)}"
        if reading is not None and reading["reason"]:
            yield f"{name}: {reading['level']}: {reading['reason']}"


def _why_otherwise(resource: str, reading: Mapping[str, Any]) -> str:
    held = _held(resource, reading)
    if reading["unit"]:
        return f"is held, and {held} is nearer to its limit"
    if reading["floor"]:
        return f"is more than need stay there; {held} must"
    return f"is more than there is; {held} is held"


def _held(resource: str, reading: Mapping[str, Any]) -> str:
    where = f" ({reading['where']})" if reading["where"] else ""
    return guard_page.amount(resource, reading["limit"], reading["unit"]) + where


def _of_settings(settings: Settings, resource: str) -> float:
    value: float = getattr(Limits.from_settings(settings), CHANGEABLE[resource])
    return value


def _ask(client: redis.Redis, change: Callable[[Orders], Orders]) -> Asked:
    """Change what is asked of all workers, and wait until they follow."""
    seen: list[Orders] = []

    def noted(orders: Orders) -> Orders:
        seen.append(orders)
        return change(orders)

    after = guard_watch.give(client, noted)
    deadline = time.monotonic() + FOLLOW_S
    guards = running.guards()
    while late := [name for name, guard in guards.items() if guard and not _follows(guard, after)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
        guards |= running.guards(late)
    return Asked(before=seen[-1], after=after, guards=guards)


def _follows(guard: Mapping[str, Any], orders: Orders) -> bool:
    return bool(guard["ordered"] == asdict(orders))


def _workers(names: list[str]) -> str:
    return "1 worker takes" if len(names) == 1 else f"{len(names)} workers take"
