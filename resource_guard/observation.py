"""What the guard sees, and what it makes of it: plain values that pass between sensors, policy and guard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from types import MappingProxyType


class Resource(StrEnum):
    """What is limited. The values are the words of settings, logs, events and commands."""

    #: Everything AgentLink runs: its processes, or its control group where that one sets the limit.
    MEMORY = "memory"
    #: A floor: what the machine, or the control group, has left, whoever uses the rest.
    MEMORY_FREE = "memory_free"
    #: Share of the CPU time that the machine, or the control group's quota, allows; mean over 10 s.
    CPU = "cpu"
    #: A floor: what the fullest of the data paths has left.
    DISK_FREE = "disk_free"
    #: What AgentLink itself keeps on disk.
    DISK_QUOTA = "disk_quota"
    #: What the broker's data takes of what it may take.
    BROKER_MEMORY = "broker_memory"
    #: How many processes AgentLink runs.
    PROCESSES = "processes"


class Level(IntEnum):
    """How tight it is: fewer tasks at a time, nothing more starts, running work is ended until below."""

    OK = 0
    THROTTLE = 1
    PAUSE = 2
    EVICT = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """One quantity and its effective limit, in the same unit: bytes, a fraction or a count."""

    value: float
    #: The most it may be; with `floor` the least.
    limit: float
    floor: bool = False
    #: What it is about where that is not obvious: the path of a disk, the control group that sets the limit.
    where: str = ""
    #: What is counted where that is not the resource's usual unit: "inodes" of a disk, "threads" of a control group.
    unit: str = ""

    @property
    def fraction(self) -> float:
        """How much of the limit is used; 1 is at the limit, above is worse, for a floor too."""
        part, whole = (self.limit, self.value) if self.floor else (self.value, self.limit)
        if whole > 0:
            return part / whole
        return math.inf if part > 0 else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessUse:
    """One direct child of the worker's main process, with all its descendants."""

    pid: int
    #: Anonymous and shared memory, for which a task is responsible: pages that it maps from files can be dropped. What
    #: it has from its parent, by the fork, is in it, so an idle child has some too.
    rss_bytes: int
    #: CPU time since it started, of descendants that have ended too.
    cpu_s: float
    #: Itself first.
    pids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One look at everything; `at` is monotonic, in seconds. What could not be read this time is absent."""

    at: float
    readings: Mapping[Resource, Reading]
    children: Mapping[int, ProcessUse] = field(default_factory=lambda: MappingProxyType({}))
    #: CPU time of all that AgentLink runs, and ever ran, since the first look.
    cpu_s: float = 0.0
    #: Percent of the last 10 s in which some process waited for "memory", "cpu" or "io"; empty without kernel support.
    stalled: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    #: What memory will be at most, with those tasks that run: it is not known unless all keep to what is reserved.
    expected_bytes: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Change:
    """A resource went from one level to another, and why in one sentence with reading and limit."""

    resource: Resource
    before: Level
    after: Level
    reason: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What holds from now on."""

    #: Of every resource that is watched.
    levels: Mapping[Resource, Level]
    #: Why each one that is not OK is where it is now.
    reasons: Mapping[Resource, str]
    #: What is new.
    changes: tuple[Change, ...] = ()

    @property
    def level(self) -> Level:
        """The worst of all."""
        return max(self.levels.values(), default=Level.OK)
