"""Ends running tasks: those that broke their word, and, while memory is over its hard mark, who is spared least.

One after the other, and the next only if ending those before it will not have been enough. What has been ended goes
back to its queue with a larger reservation, unless it had already taken more than it may ever have.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from agentlink.units import format_size
from resource_guard.actions import TreeEnding
from resource_guard.gate import Ended, Started
from resource_guard.limits import Limits
from resource_guard.observation import Decision, Level, Observation, Resource
from resource_guard.ranking import Candidate, rank_for_eviction
from resource_guard.reservations import more_than

logger = logging.getLogger(__name__)

#: How long a task that is asked to end may take while there is memory left; none when there is not.
GRACE_S = 0.5
# Of the limit: above it nobody is asked any more.
_NO_TIME_FRACTION = 0.97
# What a process had before its task is not always known well; its own allocations are capped to the byte.
_UNSURE_BYTES = 32_000_000
# Nor is anybody ended whose end would free less.
_WORTH_FRACTION = 0.005


class Tasks(Protocol):
    """What runs, and what there is for it; see `resource_guard.gate.Gate`."""

    def started(self) -> list[Started]:
        """Those that run, as of now."""

    def capacity_bytes(self) -> int:
        """What one task alone can have at most."""


@dataclass(kw_only=True, slots=True)
class _Victim:
    started: Started
    ending: TreeEnding
    why: str


class Evictor:
    """Told of each look; acts a step at a time, so that the guard is never held up.

    `let_go` gets the pid of a process that is to end, which must not be slowed down any more.
    """

    def __init__(
        self,
        tasks: Tasks,
        *,
        dry_run: bool = False,
        let_go: Callable[[int], None] = lambda _: None,
        on_evicted: Callable[[Started, str], None],
    ) -> None:
        self._tasks = tasks
        self._dry_run = dry_run
        self._let_go = let_go
        self._on_evicted = on_evicted
        self._victims: dict[int, _Victim] = {}
        self._would_have: set[int] = set()
        self._over: set[int] = set()
        self._suspects = False
        self.counts: Counter[str] = Counter()

    @property
    def busy(self) -> bool:
        """Whether somebody is being ended, or will be if the next look finds the same: it is to come soon."""
        return bool(self._victims) or self._suspects

    def look(self, limits: Limits, seen: Observation, decision: Decision) -> None:
        """Go on with what was begun, and begin what is due."""
        somebody_left = self._go_on(seen.at)
        running = self._running()
        alive = {id(one.request) for one in running}
        self._would_have &= alive
        self._over &= alive
        tight = _is_tight(limits, seen)
        self._suspects = False
        due = [(one, why) for one in running if (why := self._broke_its_word(one, tight=tight))]
        self._begin(due, grace_s=0.0, now=seen.at)
        if somebody_left:
            return  # what was read counts what is free by now
        if decision.levels.get(Resource.MEMORY) is Level.EVICT:
            self._free_memory(limits, seen, decision.reasons[Resource.MEMORY])
        if decision.levels.get(Resource.PROCESSES) is Level.EVICT:
            self._end_the_most_fruitful(seen, decision.reasons[Resource.PROCESSES])

    def _broke_its_word(self, one: Started, *, tight: bool) -> str:
        """Why a task is ended whether or not there is memory left: it takes more than it may ever have."""
        if one.cap_bytes is None or one.use_bytes <= one.cap_bytes + _UNSURE_BYTES:
            self._over.discard(id(one.request))
            return ""
        final = one.reserved.declared or one.cap_bytes >= self._tasks.capacity_bytes()
        if not final and not tight:
            return ""  # nobody has said what it takes: let it, while there is enough
        if not tight and id(one.request) not in self._over:
            self._over.add(id(one.request))  # what the task before it had may go in this moment: look again
            self._suspects = True
            return ""
        return f"it and what it started take {format_size(one.use_bytes)}, and may take {format_size(one.cap_bytes)}"

    def _free_memory(self, limits: Limits, seen: Observation, why: str) -> None:
        memory = seen.readings[Resource.MEMORY]
        marks = limits.marks[Resource.MEMORY]
        leaving = sum(victim.started.use_bytes for victim in self._victims.values())
        due: list[tuple[Started, str]] = []
        for one in self._ranked(worth_bytes=memory.limit * _WORTH_FRACTION):
            if memory.value - leaving < marks.hard * memory.limit:
                break
            due.append((one, why))
            leaving += one.use_bytes
        self._begin(due, grace_s=0.0 if memory.fraction >= _NO_TIME_FRACTION else GRACE_S, now=seen.at)

    def _end_the_most_fruitful(self, seen: Observation, why: str) -> None:
        counts = {pid: len(child.pids) for pid, child in seen.children.items()}
        running = [one for one in self._running() if one.pid in counts]
        if running and not self._victims:
            most = max(running, key=lambda one: counts[one.pid or 0])
            self._begin([(most, why)], grace_s=0.0, now=seen.at)

    def _running(self) -> list[Started]:
        """Those that a process has begun and that nobody is ending, or has ended without Celery's knowing it yet."""
        return [one for one in self._tasks.started() if one.pid and one.request.ended is None]

    def _ranked(self, worth_bytes: float) -> list[Started]:
        running = {one.applicant.key: one for one in self._running() if one.use_bytes >= worth_bytes}
        candidates = [
            Candidate(
                key=key,
                pid=one.pid or 0,
                used_bytes=one.use_bytes,
                reserved_bytes=one.reserved.memory_bytes,
                rerunnable=bool(getattr(one.request.task, "acks_late", True)),
                priority=one.applicant.priority,
                started_at=one.started_at,
            )
            for key, one in running.items()
        ]
        return [running[candidate.key] for candidate in rank_for_eviction(candidates)]

    def _begin(self, due: list[tuple[Started, str]], *, grace_s: float, now: float) -> None:
        """End these. None takes more while another is being ended, which takes a while if it has started many."""
        if self._dry_run:
            for one, why in due:
                self._say_only(one, why)
            return
        endings = [self._mark(one, why, grace_s) for one, why in due]
        if grace_s <= 0:
            for ending in endings:
                ending.freeze()
        for ending in endings:
            ending.step(now)

    def _say_only(self, one: Started, why: str) -> None:
        if id(one.request) not in self._would_have:
            self._would_have.add(id(one.request))
            logger.warning("would end task %s[%s]: %s", one.request.name, one.request.id, why)

    def _mark(self, one: Started, why: str, grace_s: float) -> TreeEnding:
        assert one.pid is not None
        request = one.request
        request.ended = self._verdict(one)
        self._let_go(one.pid)
        ending = TreeEnding(one.pid, grace_s=grace_s, still_needed=lambda: request.on_end is not None)
        self._victims[id(request)] = _Victim(started=one, ending=ending, why=why)
        return ending

    def _verdict(self, one: Started) -> Ended:
        """What becomes of it: more room the next time, or none if it has had all that it may have."""
        capacity_bytes = self._tasks.capacity_bytes()
        allowed_bytes = one.cap_bytes if one.cap_bytes is not None else capacity_bytes
        over = one.use_bytes > one.reserved.memory_bytes
        too_much = one.cap_bytes is not None and one.use_bytes > allowed_bytes
        final = too_much and (one.reserved.declared or allowed_bytes >= capacity_bytes)
        if final:
            reserve_bytes = None
        elif over and not one.reserved.declared:
            reserve_bytes = more_than(one.reserved, one.use_bytes, capacity_bytes)
        else:
            reserve_bytes = one.reserved.memory_bytes
        return Ended(used_bytes=one.use_bytes, allowed_bytes=allowed_bytes, reserve_bytes=reserve_bytes)

    def _go_on(self, now: float) -> bool:
        """Whether somebody has left since the look before."""
        before = len(self._victims)
        for key, victim in list(self._victims.items()):
            ended = victim.ending.step(now)
            if ended is None:
                continue
            del self._victims[key]
            request = victim.started.request
            if ended.spared and not ended.asked:
                request.ended = None
                continue
            failed = request.ended is not None and request.ended.reserve_bytes is None
            self.counts["failed" if failed else "evicted"] += 1
            logger.warning(
                "ended task %s[%s] and its %d processes in %.1f s: %s",
                request.name,
                request.id,
                len(ended.pids),
                ended.took_s,
                victim.why,
            )
            self._on_evicted(victim.started, victim.why)
        return len(self._victims) < before


def _is_tight(limits: Limits, seen: Observation) -> bool:
    """Whether memory is where a pause, had there been one, would go on: no time is to be lost then."""
    memory, marks = seen.readings.get(Resource.MEMORY), limits.marks.get(Resource.MEMORY)
    return memory is not None and marks is not None and memory.fraction >= marks.resume
