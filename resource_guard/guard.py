"""The guard's loop: sense, decide, act, wait. It watches from a thread of its own and never stops the worker."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from resource_guard.errors import GuardError
from resource_guard.limits import Limits
from resource_guard.observation import Action, Decision, Observation, Pressure, State
from resource_guard.policy import decide
from resource_guard.sensors import Sensor
from resource_guard.valve import Valve

logger = logging.getLogger(__name__)


class Guard:
    """Closes `valve` under memory pressure and opens it again, looking every `interval_s`.

    `start` and `stop` may come in any order and number. `stop` returns when the thread has ended, and leaves the valve
    open: nobody would be left to open it.
    """

    def __init__(
        self,
        limits: Limits,
        sensor: Sensor,
        valve: Valve,
        *,
        clock: Callable[[], float] = time.monotonic,
        interval_s: float = 0.1,
    ) -> None:
        self.limits = limits
        self.valve = valve
        self.last_observation: Observation | None = None
        self._sensor = sensor
        self._clock = clock
        self._interval_s = interval_s
        self._state = State()
        self._decision = Decision(action=Action.NONE, pressure=Pressure.OK)
        self._reported: set[type[Exception]] = set()
        self._stopping = threading.Event()
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
        self._thread.join()
        self._thread = None
        self._state = State()
        self.valve.resume("the guard has stopped")

    def tick(self) -> None:
        """Look once and act on it. An error of the guard's own is logged, once per kind, and skips this look."""
        try:
            seen = self._sensor.observe(self._clock())
            before = self._state
            self._state, decision = decide(self.limits, before, seen)
            self.last_observation, self._decision = seen, decision
            self._act(decision, seen, before)
        except Exception as error:  # noqa: BLE001 - a guard that dies of an unforeseen error guards nothing
            self._report(error)

    def status(self) -> dict[str, object]:
        """What the guard sees and does, in plain values; sizes are None before the first look."""
        seen, decision, position = self.last_observation, self._decision, self.valve.position
        return {
            "state": "ok" if position.is_open else "paused",
            # While paused, what holds it now can differ from what closed it.
            "reason": position.reason if position.is_open else decision.reason or position.reason,
            "since": position.since,
            "pressure": decision.pressure.value,
            "tree_bytes": seen.tree_bytes if seen else None,
            "available_bytes": seen.available_bytes if seen else None,
            "limit_bytes": self.limits.memory_bytes,
            "soft_bytes": self.limits.soft_bytes,
            "resume_bytes": self.limits.resume_bytes,
            "free_bytes": self.limits.free_bytes,
        }

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            self.tick()

    def _act(self, decision: Decision, seen: Observation, before: State) -> None:
        if decision.action is Action.PAUSE and self.valve.pause(decision.reason):
            logger.warning("takes no new tasks: %s", decision.reason)
        elif decision.action is Action.RESUME and self.valve.resume(decision.reason):
            paused_s = seen.at - (seen.at if before.paused_at is None else before.paused_at)
            logger.info("takes tasks again after %.1f s: %s", paused_s, decision.reason)

    def _report(self, error: Exception) -> None:
        if type(error) in self._reported:
            return
        self._reported.add(type(error))
        if isinstance(error, GuardError):
            logger.warning("the guard skips a look: %s (said once)", error)
        else:
            logger.error("the guard goes on after an error of its own (said once)", exc_info=error)
