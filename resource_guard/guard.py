"""The guard's loop: sense, decide, act, wait. It watches from a thread of its own and never stops the worker."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Protocol

from resource_guard.errors import GuardError
from resource_guard.limits import Limits
from resource_guard.observation import Change, Decision, Level, Observation, Reading
from resource_guard.policy import State, decide
from resource_guard.sensors import Sensor
from resource_guard.steering import Orders, Steering
from resource_guard.valve import Position, Valve

logger = logging.getLogger(__name__)

#: The guard's thread uses a hundredth of a core, and must have that while thirty processes start at once: looks that
#: take 1 ms came up to 0.38 s late without it, and memory went 18 % over its limit meanwhile.
NICE = -15


class Crew(Protocol):
    """Who acts on tasks; see `resource_guard.keeper.Keeper`."""

    def look(self, limits: Limits, seen: Observation, decision: Decision) -> None:
        """Do what the decision asks for."""

    def interval_s(self, limits: Limits, seen: Observation, usual_s: float) -> float:
        """When to look again."""

    def expected_bytes(self) -> float:
        """What memory will be at most, with those tasks that run; infinity where that is not known."""

    def status(self) -> dict[str, object]:
        """What there is for tasks and who has it, in plain values."""


class Guard:
    """Closes `valve` under pressure and opens it again, looking every `interval_s` or as `crew` says.

    `start` and `stop` may come in any order and number. `stop` returns when the thread has ended, and leaves the valve
    open: nobody would be left to open it. In the guard's thread `on_change` is told of each change of level, with the
    reading, and `on_turn` of each turn of the valve, with how long it was closed before.
    """

    def __init__(
        self,
        limits: Limits,
        sensor: Sensor,
        valve: Valve,
        *,
        clock: Callable[[], float] = time.monotonic,
        interval_s: float = 0.1,
        alarm_s: float = 900.0,
        dry_run: bool = False,
        crew: Crew | None = None,
        on_change: Callable[[Change, Reading | None], None] = lambda *_: None,
        on_turn: Callable[[Position, float], None] = lambda *_: None,
    ) -> None:
        self.limits = limits
        self.valve = valve
        self.crew = crew
        self.dry_run = dry_run
        #: What a person has asked for.
        self.steering = Steering()
        self._followed = Orders()
        self.last_observation: Observation | None = None
        self.last_decision = Decision(levels={}, reasons={})
        self.counts: Counter[str] = Counter()
        #: By how much the latest look came later than planned, and the most ever.
        self.late_s, self.latest_s = 0.0, 0.0
        self.sensor = sensor
        self._clock = clock
        self._interval_s = interval_s
        self._alarm_s = alarm_s
        self._on_change = on_change
        self._on_turn = on_turn
        self._state = State()
        self._paused_at: float | None = None
        self._alarmed = False
        self._would_pause = False
        self._reported: set[type[Exception]] = set()
        self._stopping = threading.Event()
        self._news = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to watch. The first look is over when this returns: a worker under pressure takes nothing at all."""
        if self._thread is not None:
            return
        self.tick()
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="resource-guard", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Cease to watch."""
        if self._thread is None:
            return
        self._stopping.set()
        self._news.set()
        self._thread.join()
        self._thread = None
        self.sensor.close()
        self._state, self._paused_at = State(), None
        self.valve.resume("the guard has stopped")

    def wake(self) -> None:
        """Something runs again: the next look is not to be as late as while nothing did. From any thread."""
        self._news.set()

    def tick(self) -> None:
        """Look once and act on it. An error of the guard's own is logged, once per kind, and skips this look."""
        try:
            orders = self.steering.orders
            limits = self.limits = self.steering.limits_from(self.limits)
            seen = self.sensor.observe(self._clock())
            if self.crew is not None:
                seen = replace(seen, expected_bytes=self.crew.expected_bytes())
            self._state, decision = decide(limits, self._state, seen)
            self.last_observation, self.last_decision = seen, decision
            self._turn(decision, seen.at)
            self._followed = orders
            for change in decision.changes:
                self._tell(change, seen.readings.get(change.resource))
            if self.crew is not None:
                self.crew.look(limits, seen, decision)
        except Exception as error:  # noqa: BLE001 - a guard that dies of an unforeseen error guards nothing
            self._report(error)

    def status(self) -> dict[str, object]:
        """What the guard sees and does, in plain values: sizes in bytes, times in seconds since 1970.

        `ordered` is what a person has asked for, as the last look has followed it.
        """
        seen, decision, position = self.last_observation, self.last_decision, self.valve.position
        readings = seen.readings if seen else {}
        return {
            "state": "ok" if position.is_open else "paused",
            "reason": position.reason,
            "since": position.since,
            "dry_run": self.dry_run,
            "resources": {
                resource.value: {
                    "level": decision.levels.get(resource, Level.OK).name.lower(),
                    "value": reading.value,
                    "limit": reading.limit,
                    "floor": reading.floor,
                    "unit": reading.unit,
                    "fraction": min(reading.fraction, 1e9),  # a floor of which nothing is left; JSON has no infinity
                    "where": reading.where,
                    "reason": decision.reasons.get(resource, ""),
                }
                for resource, reading in readings.items()
                if resource in self.limits.marks
            },
            "stalled": dict(seen.stalled) if seen else {},
            "ordered": asdict(self._followed),
            "counts": dict(self.counts),
            "latest_s": self.latest_s,
            "tasks": self.crew.status() if self.crew else {},
        }

    def _run(self) -> None:
        _come_first()
        while True:
            self._news.clear()  # before it is asked whether to stop, and how much runs
            if self._stopping.is_set():
                return
            due_at = time.monotonic() + self._next_s()
            if self._news.wait(due_at - time.monotonic()):
                due_at = min(due_at, time.monotonic() + self._next_s())
            if self._stopping.wait(due_at - time.monotonic()):
                return
            self.late_s = time.monotonic() - due_at
            self.latest_s = max(self.latest_s, self.late_s)
            self.tick()

    def _next_s(self) -> float:
        if self.crew is None or self.last_observation is None:
            return self._interval_s
        return self.crew.interval_s(self.limits, self.last_observation, self._interval_s)

    def _turn(self, decision: Decision, at: float) -> None:
        """Close the valve or open it, and say why."""
        reason = self.steering.pause_reason() or _why_paused(decision)
        if reason and self.dry_run:
            if not self._would_pause:
                logger.warning("would take no new tasks: %s", reason)
            self._would_pause = True
        elif reason:
            if self.valve.pause(reason):
                self._paused_at, self._alarmed = at, False
                self.counts["pauses"] += 1
                logger.warning("takes no new tasks: %s", reason)
                self._on_turn(self.valve.position, 0.0)
            self.valve.explain(reason)
            self._alarm_if_long(reason, at)
        else:
            self._would_pause = False
            if self.valve.resume("there is room"):
                paused_s = at - (at if self._paused_at is None else self._paused_at)
                self.counts["paused_ms"] += int(paused_s * 1000)
                logger.info("takes tasks again after %.1f s: %s", paused_s, self._why_resumed(decision))
                self._on_turn(self.valve.position, paused_s)

    def _why_resumed(self, decision: Decision) -> str:
        return next((change.reason for change in decision.changes), "a person has said so")

    def _alarm_if_long(self, reason: str, at: float) -> None:
        if self._alarmed or self._paused_at is None or at < self._paused_at + self._alarm_s:
            return
        self._alarmed = True
        self.counts["alarms"] += 1
        logger.error("has taken no new tasks for %.0f s and still does not: %s", at - self._paused_at, reason)

    def _tell(self, change: Change, reading: Reading | None) -> None:
        """Log and count it, unless that is what has turned the valve, which says so itself."""
        self.counts[f"{change.resource}_{change.after.name.lower()}"] += 1
        names = (change.resource, change.after.name.lower(), change.before.name.lower(), change.reason)
        if change.after >= Level.EVICT or change.after is Level.THROTTLE:
            logger.warning("%s: %s, was %s: %s", *names)
        elif change.before in (Level.EVICT, Level.THROTTLE):
            logger.info("%s: %s, was %s: %s", *names)
        self._on_change(change, reading)

    def _report(self, error: Exception) -> None:
        if type(error) in self._reported:
            return
        self._reported.add(type(error))
        if isinstance(error, GuardError):
            logger.warning("the guard skips a look: %s (said once)", error)
        else:
            logger.error("the guard goes on after an error of its own (said once)", exc_info=error)


def _come_first() -> None:
    """Have this thread run before all others that want to, where this user may (root, or with RLIMIT_NICE)."""
    if sys.platform == "linux":  # elsewhere threads have no niceness of their own
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def _why_paused(decision: Decision) -> str:
    """Of the worst resource that lets nothing start; empty if there is none."""
    tight = [resource for resource, level in decision.levels.items() if level >= Level.PAUSE]
    # The CPU's hard mark slows down what runs, and stops nothing from starting.
    worst = max((one for one in tight if one != "cpu"), key=lambda one: decision.levels[one], default=None)
    return decision.reasons[worst] if worst else ""
