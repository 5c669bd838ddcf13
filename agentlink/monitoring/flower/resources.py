"""The Resources page: what the guards see and hold now, who uses what, and plots of what was before.

A person pauses all workers there, has them go on, and changes the limits they hold.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from redis import Redis
from tornado.web import HTTPError

from agentlink import guard_orders, guard_page
from agentlink.broker import guard_watch
from agentlink.masking import masked_text
from agentlink.monitoring import history, workers
from agentlink.monitoring.flower.base import Change
from agentlink.monitoring.flower.stream import Stream
from agentlink.settings import load
from agentlink.settings_checks import RESOURCES
from agentlink.units import parse_duration

#: How far back the plots may go, in seconds, and what is drawn at least so finely.
SPANS_S = (600, 3_600, 86_400, 30 * 86_400)
# A span just within that of its ring, or the first rows would be asked of the coarser one.
_MARGIN_S = 15

_SERIES = (
    *(history.MEMORY_BYTES, history.MEMORY_LIMIT_BYTES, history.RESERVED_BYTES, history.CPU_FRACTION),
    *(history.CPU_LIMIT_FRACTION, history.DISK_FREE_BYTES, history.DISK_FREE_LIMIT_BYTES),
    *(history.BROKER_MEMORY_BYTES, history.BROKER_MEMORY_LIMIT_BYTES, history.TASKS_RUNNING, history.TASKS_WAITING),
    *(history.TASKS_DONE, history.TASKS_FAILED, history.TASKS_RETRIED, history.PAUSED_FRACTION, history.EVICTIONS),
)


class ResourcesStream(Stream):
    """How it is each second, and the plots: at first the whole span, then what is new."""

    # Workers tell how they are once a second.
    every_s = 1.0

    async def get(self) -> None:  # type: ignore[override]
        """Tell of the last `span` seconds."""
        try:
            self.span_s = int(self.word("span", str(SPANS_S[0])))
        except ValueError:
            self.span_s = 0
        if self.span_s not in SPANS_S:
            raise HTTPError(400, "want a span of %s seconds", ", ".join(map(str, SPANS_S)))
        self.read_at, self.last_s = 0.0, 0
        self.names: tuple[str, ...] = ()
        await super().get()

    def look(self) -> dict[str, Any]:
        """How the workers are, and rows of the plots."""
        plots = self._plots()
        return {"now": _now(self.client)} | ({"plots": plots} if plots else {})

    def _plots(self) -> dict[str, Any] | None:
        """Rows that are new; all of them where they are coarse, or a queue has come."""
        now = time.time()
        step_s = history.ring_for(self.span_s - _MARGIN_S).step_s
        if now - self.read_at < step_s:
            return None
        self.read_at = now
        names = (*_SERIES, *map(history.queue_depth, history.queues(self.client)))
        only_new = step_s == 1 and self.last_s > 0 and names == self.names
        self.names = names
        since = max(self.last_s + 1, now - self.span_s) if only_new else now - self.span_s + _MARGIN_S
        found = history.read(self.client, names, since)
        times = list(next(iter(found.values())).times)
        # The row of this second may not be written yet.
        while times and all(series.values[len(times) - 1] is None for series in found.values()):
            times.pop()
        if times:
            self.last_s = times[-1]
        values = {name: [_short(value) for value in series.values[: len(times)]] for name, series in found.items()}
        return {"times": times, "values": values, "more": only_new, "step_s": step_s, "span_s": self.span_s}


class ResourcesChange(Change):
    """All workers are paused, or go on, or hold other limits."""

    async def post(self, action: str) -> None:
        """Ask all workers; answer with what comes of it."""
        change = {"pause": _pause, "resume": _resume, "limits": _limits, "reset": _reset}[action]
        self.answer({"said": await self.told(change, self.client, self.asked())})


def _now(client: Redis) -> dict[str, Any]:
    said = workers.read(client)
    now = time.time()
    guards = {name: status if status["guard"] else None for name, status in said.items()}
    ordered = guard_watch.ordered(client)
    return {
        "at": now,
        "workers": [_worker(name, status, now) for name, status in sorted(said.items())],
        "tasks": [_task(name, task) for name, status in said.items() for task in status["tasks"].get("started", ())],
        "limits": _limits_now(client, guards),
        "paused": {"is": ordered.paused and (ordered.until is None or ordered.until > now),
                   "reason": masked_text(ordered.reason), "until": ordered.until},
    }  # fmt: skip


def _worker(name: str, status: Mapping[str, Any], now: float) -> dict[str, Any]:
    tasks = status["tasks"]
    return {
        "name": name,
        "state": status["state"] if status["guard"] else "unguarded",
        "reason": masked_text(status["reason"]),
        "since": status["since"],
        "dry_run": bool(status.get("dry_run")),
        "queues": status["queues"],
        "concurrency": status["concurrency"],
        "running": status["running"],
        "waiting": status["waiting"],
        "room_bytes": tasks.get("room_bytes"),
        "reserved_bytes": tasks.get("reserved_bytes"),
        "resources": [_resource(name, status["resources"][name]) for name in RESOURCES if name in status["resources"]],
    }


def _resource(name: str, reading: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "level": reading["level"],
        "fraction": min(reading["fraction"], 1.0),
        "use": guard_page.use(name, reading),
        "where": reading["where"],
        "reason": reading["reason"],
    }


def _task(worker: str, task: Mapping[str, Any]) -> dict[str, Any]:
    wanted = ("id", "name", "pid", "use_bytes", "reserved_bytes", "cap_bytes", "evictions", "declared", "runs")
    return {"worker": worker} | {name: task[name] for name in wanted}


def _limits_now(client: Redis, guards: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": limit["resource"],
            "settings": guard_page.amount(limit["resource"], limit["settings"]),
            "ordered": None if limit["ordered"] is None else guard_page.amount(limit["resource"], limit["ordered"]),
        }
        for limit in guard_orders.limits_in_force(client, load(), dict(guards))
    ]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _pause(client: Redis, asked: Mapping[str, Any]) -> str:
    try:
        duration_s = parse_duration(asked["duration"]) if asked.get("duration") else None
    except ValueError as error:
        raise guard_orders.LimitsRefused(str(error)) from None
    return _sentences(guard_orders.pause(client, str(asked.get("reason") or ""), duration_s))


def _resume(client: Redis, asked: Mapping[str, Any]) -> str:
    return _sentences(guard_orders.resume(client))


def _limits(client: Redis, asked: Mapping[str, Any]) -> str:
    limits = asked.get("limits")
    if not isinstance(limits, dict) or not limits:
        raise HTTPError(400, "want limits by resources")
    return _sentences(guard_orders.set_limits(client, load(), [f"{name}={value}" for name, value in limits.items()]))


def _reset(client: Redis, asked: Mapping[str, Any]) -> str:
    return _sentences(guard_orders.reset_limits(client, load()))


def _sentences(said: Iterable[str]) -> str:
    return "; ".join(" ".join(sentence.split()) for sentence in said)
