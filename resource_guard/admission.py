"""Which of the tasks a worker holds may start now: the most urgent first, fair between runs, and only what fits.

Plain data, no clock and no I/O: time and room come in as arguments. The order is priority, then the run that has had
the fewest turns, then age. A task that does not fit lets smaller ones pass, but only for a bounded time: then nothing
more starts until there is room for it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

# A task that keeps less of a core busy mostly waits.
_NO_CORES = 0.05
# What the worker itself takes is never quite the same.
_NEARLY = 0.9
# How far behind a task that does not fit one that does is looked for.
_LOOK_AHEAD = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Applicant:
    """A task that wants to start, and what is to be reserved for it beyond an idle process."""

    #: Tells it from every other; a task delivered twice is two applicants.
    key: int
    memory_bytes: int
    cpu_cores: float = 0.0
    #: 9 is the most urgent.
    priority: int = 0
    #: What it shares its turns with: its run; '' outside any.
    share: str = ""
    arrived_at: float = 0.0
    #: Whether it takes no time to speak of.
    short: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """What all running tasks may have together: memory beyond what is used anyway, tasks at a time, cores.

    With `followers`, so many more may be started while all are short: each runs when another has ended.
    """

    memory_bytes: float = math.inf
    slots: int = 1
    cpu_cores: float = math.inf
    followers: int = 0


class Admission:
    """What waits and what runs in one worker."""

    def __init__(self, *, pass_over_s: float = 10.0) -> None:
        self._pass_over_s = pass_over_s
        self._waiting: dict[tuple[int, str], deque[Applicant]] = {}
        self._running: dict[int, Applicant] = {}
        self._turns: dict[str, int] = {}
        self._blocked_since: dict[int, float] = {}
        self._not_short = 0
        self.reserved_bytes = 0
        self.reserved_cores = 0.0
        #: How many wait.
        self.waiting = 0

    @property
    def running(self) -> int:
        """How many have been started and not finished."""
        return len(self._running)

    @property
    def blocked(self) -> bool:
        """Whether a task waits because it does not fit, so that smaller ones are worth looking for."""
        return bool(self._blocked_since)

    def offer(self, applicant: Applicant) -> None:
        """Let a task wait for its turn."""
        self._waiting.setdefault((-applicant.priority, applicant.share), deque()).append(applicant)
        self.waiting += 1

    def withdraw(self, *, but_blocked: bool) -> list[int]:
        """Forget all that wait, or all but those that wait for room, and say who they were, oldest first."""
        kept = self._blocked_since.keys() if but_blocked else ()
        leaving = [one for group in self._waiting.values() for one in group if one.key not in kept]
        groups = {place: deque(one for one in group if one.key in kept) for place, group in self._waiting.items()}
        self._waiting = {place: group for place, group in groups.items() if group}
        if not but_blocked:
            self._blocked_since.clear()
        self.waiting -= len(leaving)
        return [one.key for one in sorted(leaving, key=lambda one: one.arrived_at)]

    def finished(self, key: int) -> None:
        """A started task needs its room no more."""
        applicant = self._running.pop(key, None)
        if applicant is None:
            return
        self._not_short -= not applicant.short
        self.reserved_bytes -= applicant.memory_bytes
        self.reserved_cores -= applicant.cpu_cores
        if not self._running and not self.waiting:
            self._turns.clear()

    def takes(self, key: int, memory_bytes: int) -> None:
        """A started task takes more than was reserved for it: others have to make do with the rest."""
        applicant = self._running.get(key)
        if applicant is not None and memory_bytes > applicant.memory_bytes:
            self._running[key] = replace(applicant, memory_bytes=memory_bytes)
            self.reserved_bytes += memory_bytes - applicant.memory_bytes

    def next(self, room: Room, now: float) -> Applicant | None:
        """The task that is to start now, which counts as running from here on; None if none may."""
        if not self.waiting:
            return None
        if len(self._running) >= room.slots:
            return self._next_to_follow(room)
        blocked = False
        for applicant in self._in_order():
            if self._fits(applicant, room) or self._alone_it_may(applicant, room, now):
                self._start(applicant)
                return applicant
            if not blocked:
                blocked = True
                if now - self._blocked_since.setdefault(applicant.key, now) > self._pass_over_s:
                    return None
        return None

    def _next_to_follow(self, room: Room) -> Applicant | None:
        """The next task, if it is short as all that run. The cores it will have are those of the one before it."""
        if self._not_short or len(self._running) >= room.slots + room.followers:
            return None
        applicant = next(self._in_order())
        if not applicant.short or self.reserved_bytes + applicant.memory_bytes > room.memory_bytes:
            return None
        self._start(applicant)
        return applicant

    def _fits(self, applicant: Applicant, room: Room) -> bool:
        if self.reserved_bytes + applicant.memory_bytes > room.memory_bytes:
            return False
        # Whoever shares cores runs slower and still ends, and cores left over would be wasted: the last one may take
        # more than is left of them.
        return applicant.cpu_cores < _NO_CORES or self.reserved_cores + _NO_CORES < room.cpu_cores

    def _alone_it_may(self, applicant: Applicant, room: Room, now: float) -> bool:
        """Nothing runs whose end would make more room: it starts where there is nearly enough, or after a while."""
        if self._running:
            return False
        waited_s = now - self._blocked_since.get(applicant.key, now)
        return applicant.memory_bytes * _NEARLY <= room.memory_bytes or waited_s > self._pass_over_s

    def _in_order(self) -> Iterator[Applicant]:
        groups = list(self._waiting.items())
        if len(groups) > 1:
            groups.sort(key=lambda group: (group[0][0], self._turns.get(group[0][1], 0), group[1][0].arrived_at))
        for _, group in groups:
            yield group[0]
        for _, group in groups:
            for index, applicant in enumerate(group):
                if index >= _LOOK_AHEAD:
                    break
                if index:
                    yield applicant

    def _start(self, applicant: Applicant) -> None:
        place = (-applicant.priority, applicant.share)
        group = self._waiting[place]
        group.remove(applicant)
        if not group:
            del self._waiting[place]
        self.waiting -= 1
        self._blocked_since.pop(applicant.key, None)
        self._running[applicant.key] = applicant
        self._not_short += not applicant.short
        self.reserved_bytes += applicant.memory_bytes
        self.reserved_cores += applicant.cpu_cores
        self._count_turn(applicant.share)

    def _count_turn(self, share: str) -> None:
        """One turn more. A run that comes later starts with as many as that one of those here which has had fewest."""
        if len(self._waiting) < 2 and not self._turns:
            return
        here = {waiting for _, waiting in self._waiting}
        least = min((self._turns[one] for one in here if one in self._turns), default=0)
        for one in here:
            self._turns.setdefault(one, least)
        self._turns[share] = max(self._turns.get(share, least), least) + 1
        if len(self._turns) > 4 * _LOOK_AHEAD:
            self._turns = {one: turns for one, turns in self._turns.items() if one in here}
