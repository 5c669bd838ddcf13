"""A guard over readings that a test sets, with a crew that does nothing."""

from __future__ import annotations

from collections.abc import Callable

from resource_guard import Decision, Guard, Level, Limits, Marks, Observation, Reading, Resource, Valve

MB = 1_000_000
LIMITS = Limits(
    memory_bytes=300 * MB,
    marks={
        Resource.MEMORY: Marks(resume=0.75, pause=0.85, evict=0.95, readings_off=1, rest_s=1.0),
        Resource.CPU: Marks(resume=0.85, throttle=0.95, evict=1.0, readings_off=1),
    },
)


class Readings:
    """A sensor that gives what it is told to, and the clock that goes with it."""

    cores = 2.0

    def __init__(self) -> None:
        self.now = 0.0
        self.memory_mb = 100
        self.cpu_fraction: float | None = None
        self.error: Exception | None = None
        self.asked = 0
        self.closed = 0

    def observe(self, at: float) -> Observation:
        self.asked += 1
        if self.error:
            raise self.error
        readings = {Resource.MEMORY: Reading(value=self.memory_mb * MB, limit=300 * MB)}
        if self.cpu_fraction is not None:
            readings[Resource.CPU] = Reading(value=self.cpu_fraction, limit=1.0)
        return Observation(at=at, readings=readings, stalled={"memory": 0.5})

    def close(self) -> None:
        self.closed += 1


class Crew:
    """Who acts on tasks, as the guard asks for it."""

    def __init__(self) -> None:
        self.looks: list[tuple[Limits, Level]] = []
        self.error: Exception | None = None
        self.next_s = 0.001
        self.expected = float("inf")

    def look(self, limits: Limits, seen: Observation, decision: Decision) -> None:
        self.looks.append((limits, decision.level))
        if self.error:
            raise self.error

    def expected_bytes(self) -> float:
        return self.expected

    def interval_s(self, limits: Limits, seen: Observation, usual_s: float) -> float:
        return self.next_s

    def status(self) -> dict[str, object]:
        return {"running": 3}


Make = Callable[..., Guard]


def maker(readings: Readings) -> Make:
    """Makes guards over `readings`, changed as a test says."""

    def make(**options: object) -> Guard:
        arguments = {"clock": lambda: readings.now, "interval_s": 0.001, **options}
        return Guard(LIMITS, readings, Valve(clock=lambda: 1234.5), **arguments)  # type: ignore[arg-type]

    return make
