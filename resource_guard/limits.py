"""The limits that the guard holds, with the relations between them checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from resource_guard.observation import Level, Resource

if TYPE_CHECKING:
    from agentlink.settings import Settings

# Resuming needs this much more of what must stay free than pausing leaves.
COMFORT_FACTOR = 1.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Marks:
    """At which fractions of its limit a resource changes level. None: that level does not exist for it.

    One mark, `resume`, ends every level: what lies between it and the first mark above changes nothing.
    """

    #: Fewer tasks at a time.
    throttle: float | None = None
    #: Nothing more starts.
    pause: float | None = None
    #: Below this all is well again.
    resume: float
    #: Running work is ended until below. None: nothing is ever ended for it. For the CPU it means that running work is
    #: slowed down, and nothing is ended.
    evict: float | None = None
    #: So many readings in a row over a mark, or below `resume`, count.
    readings_on: int = 1
    readings_off: int = 3
    #: Least time paused.
    rest_s: float = 1.0

    @property
    def hard(self) -> float:
        """Where it gets dangerous: where running work is ended, or else the limit itself."""
        return self.evict if self.evict is not None else 1.0

    def of(self, level: Level) -> float | None:
        """The mark that begins `level`; None if it does not exist."""
        return {Level.THROTTLE: self.throttle, Level.PAUSE: self.pause, Level.EVICT: self.evict}.get(level)

    def level_of(self, fraction: float) -> Level:
        """The level of this reading alone, whatever was before."""
        begun = (level for level in reversed(Level) if (mark := self.of(level)) is not None and fraction >= mark)
        return next(begun, Level.OK)

    def problems(self) -> str:
        """What is wrong with them; empty if nothing is."""
        upwards = [self.resume, *(mark for mark in (self.throttle, self.pause, self.evict) if mark is not None)]
        if self.throttle is None and self.pause is None:
            return "want a mark for throttle or pause"
        if not 0 < upwards[0] < upwards[1] or upwards[1:] != sorted(upwards[1:]) or not math.isfinite(upwards[-1]):
            return f"want 0 < resume < throttle <= pause <= evict, got {self._shown()}"
        if self.readings_on < 1 or self.readings_off < 1 or not 0 <= self.rest_s < math.inf:
            return f"want one or more readings and a rest of 0 s or more, got {self._shown()}"
        return ""

    def _shown(self) -> str:
        return ", ".join(f"{name} {getattr(self, name)}" for name in self.__slots__)


DEFAULT_MARKS: Mapping[Resource, Marks] = MappingProxyType(
    {
        # Admission fills memory up to the pause: the higher, the more is used. The 5 % up to the eviction are what
        # tasks take while a pause takes hold, the 5 % above that while one is being ended: of 1.5 GB that is 0.25 s
        # each at 0.3 GB/s; one core was seen to touch up to 1.9 GB/s, and what is faster than a look is for the caps.
        Resource.MEMORY: Marks(pause=0.90, resume=0.80, evict=0.95),
        Resource.MEMORY_FREE: Marks(pause=1.0, resume=1 / COMFORT_FACTOR),
        # A mean over 10 s is late: fewer at a time before the limit, slowed down from the limit on. There is no pause,
        # a busy CPU is what it is for.
        Resource.CPU: Marks(throttle=0.95, resume=0.85, evict=1.0),
        Resource.DISK_FREE: Marks(pause=1.0, resume=1 / COMFORT_FACTOR),
        Resource.DISK_QUOTA: Marks(pause=1.0, resume=0.95),
        # A full broker refuses results too: what runs must still find room for its own.
        Resource.BROKER_MEMORY: Marks(pause=0.90, resume=0.80),
        # At the limit of a container nobody can start anything, not even the worker a new child.
        Resource.PROCESSES: Marks(pause=0.80, resume=0.70, evict=0.95),
    }
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much AgentLink may take, and how much it must leave. What the machine or a control group allows may be less.

    Raises:
        ValueError: the numbers contradict each other.
    """

    memory_bytes: int
    #: What the machine must have available, whoever uses the rest.
    memory_free_bytes: int = 0
    #: Of the machine's CPU time, or of what its control group is allowed.
    cpu_fraction: float = 1.0
    #: What each disk must have left: the smaller of the two.
    disk_free_bytes: int = 2_000_000_000
    disk_free_fraction: float = 0.1
    #: The most that AgentLink's own data may take.
    disk_quota_bytes: int = 20_000_000_000
    processes: int = 1000
    #: A resource that is not in here is not watched.
    marks: Mapping[Resource, Marks] = field(default_factory=lambda: DEFAULT_MARKS)

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "disk_quota_bytes", "processes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("memory_free_bytes", "disk_free_bytes"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 < self.cpu_fraction <= 1:
            raise ValueError(f"cpu_fraction must be above 0 and at most 1, got {self.cpu_fraction}")
        if not 0 <= self.disk_free_fraction < 1:
            raise ValueError(f"disk_free_fraction must be 0 or more and below 1, got {self.disk_free_fraction}")
        for resource, marks in self.marks.items():
            if problem := marks.problems():
                raise ValueError(f"marks of {resource}: {problem}")

    @classmethod
    def from_settings(cls, settings: Settings) -> Limits:
        """What a user has chosen.

        Raises:
            ValueError: it contradicts itself.
        """
        chosen = {
            Resource.MEMORY: {
                "pause": settings.memory_soft_fraction,
                "resume": settings.memory_resume_fraction,
                "evict": settings.memory_hard_fraction,
            },
            Resource.CPU: {
                "throttle": settings.cpu_soft_fraction,
                "resume": settings.cpu_resume_fraction,
                "evict": settings.cpu_hard_fraction,
            },
            Resource.DISK_QUOTA: {
                "pause": settings.disk_quota_soft_fraction,
                "resume": settings.disk_quota_resume_fraction,
            },
            Resource.BROKER_MEMORY: {
                "pause": settings.broker_memory_soft_fraction,
                "resume": settings.broker_memory_resume_fraction,
            },
            Resource.PROCESSES: {
                "pause": settings.processes_soft_fraction,
                "resume": settings.processes_resume_fraction,
                "evict": settings.processes_hard_fraction,
            },
        }
        for_all = {
            "readings_on": settings.guard_readings_on,
            "readings_off": settings.guard_readings_off,
            "rest_s": settings.guard_rest_s,
        }
        return cls(
            memory_bytes=settings.memory_bytes,
            memory_free_bytes=settings.memory_free_bytes,
            cpu_fraction=settings.cpu_fraction,
            disk_free_bytes=settings.disk_free_bytes,
            disk_free_fraction=settings.disk_free_fraction,
            disk_quota_bytes=settings.disk_quota_bytes,
            processes=settings.processes,
            marks={
                resource: replace(marks, **chosen.get(resource, {}), **for_all)  # type: ignore[arg-type]
                for resource, marks in DEFAULT_MARKS.items()
                if resource not in settings.guard_off
            },
        )

    def with_changes(self, changes: Mapping[str, float]) -> Limits:
        """Other limits for a running system, by resource: `{"memory": 6e9, "cpu": 0.5}`.

        Raises:
            ValueError: there is no such limit, or the number makes no sense.
        """
        wanted: dict[str, float] = {}
        for name, value in changes.items():
            if name not in CHANGEABLE:
                raise ValueError(f"{name} is not a limit that can be changed; those are {', '.join(CHANGEABLE)}")
            if not math.isfinite(value):
                raise ValueError(f"{name} must be a number, got {value}")
            wanted[CHANGEABLE[name]] = value if name == Resource.CPU else int(value)
        return replace(self, **wanted)  # type: ignore[arg-type]


#: By resource the name of its limit, here and in the settings. The broker's own limit is the broker's to hold.
CHANGEABLE: Mapping[str, str] = {
    Resource.MEMORY: "memory_bytes",
    Resource.MEMORY_FREE: "memory_free_bytes",
    Resource.CPU: "cpu_fraction",
    Resource.DISK_FREE: "disk_free_bytes",
    Resource.DISK_QUOTA: "disk_quota_bytes",
    Resource.PROCESSES: "processes",
}
