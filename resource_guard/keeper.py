"""What the guard does about tasks at each look: how many may run, what the next may have, whom to slow down or end."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from resource_guard import caps
from resource_guard.actions import TreeEnding
from resource_guard.admission import Admission, Room
from resource_guard.cpu_governor import CpuGovernor
from resource_guard.evictor import Evictor
from resource_guard.gate import Gate, Knowledge, Started
from resource_guard.limits import Limits
from resource_guard.observation import Decision, Level, Observation, Resource
from resource_guard.reclaimer import Reclaimer
from resource_guard.rooms import Rooms
from resource_guard.slots import Slots
from resource_guard.valve import Valve

logger = logging.getLogger(__name__)

# Between two looks while nothing runs, or nothing that takes long, and there is plenty of everything.
_EASY_INTERVAL_S = 0.5
#: As fast as one task can take memory (1.9 GB/s were seen in small pages, 7.8 in huge ones): no look may come later
#: than all that run would need to reach the hard mark.
FASTEST_BYTES_PER_S = 2_000_000_000
_SHORTEST_INTERVAL_S = 0.02


class Keeper:
    """Keeps the tasks of one worker within what there is.

    `start` hands a request to the pool, `pool_size` says how many it can run at a time, `cores` how many there are.
    `wake` has the worker's own thread come by: `attend` is to be called there. `withdraw`, where a process may be
    handed a second task, takes that back if it has not begun it. `take_out`, where that can be done, replaces an idle
    process by a new one; with `govern` busy ones are slowed down where that keeps the CPU limit. `on_busy` is called
    when a task starts that may take long, while no other such runs.
    """

    def __init__(
        self,
        valve: Valve,
        knowledge: Knowledge,
        *,
        start: Callable[[Any], None],
        pool_size: Callable[[], int],
        wake: Callable[[], None],
        cores: Callable[[], float],
        isolated: bool,
        withdraw: Callable[[Any], bool] | None = None,
        take_out: Callable[[int], TreeEnding | None] | None = None,
        govern: bool = False,
        dry_run: bool = False,
        on_busy: Callable[[], None] = lambda: None,
        on_evicted: Callable[[Started, str], None] = lambda *_: None,
    ) -> None:
        self._valve = valve
        self._pool_size = pool_size
        self._wake = wake
        self._cores = cores
        self._dry_run = dry_run
        self._rooms = Rooms(caps.told_bytes)
        self.slots = Slots(pool_size())
        self._may_follow = withdraw is not None
        self.gate = Gate(
            Admission(),
            knowledge,
            start,
            is_open=lambda: valve.is_open,
            room=self.room,
            capacity_bytes=self._rooms.capacity_bytes,
            cores=cores,
            isolated=isolated and not dry_run,
            withdraw=withdraw or (lambda _: False),
            dry_run=dry_run,
            on_busy=on_busy,
        )
        self.evictor = Evictor(self.gate, dry_run=dry_run, let_go=self._let_go, on_evicted=on_evicted)
        self._reclaimer = Reclaimer(take_out) if take_out else None
        self._turned = False
        self._allowed_cores = math.inf
        self._governor = CpuGovernor(lambda: self._allowed_cores, self._busy_pids) if govern else None
        self._others_cpu_s = 0.0
        self._seen: Observation | None = None

    def room(self) -> Room:
        """What all tasks may have together now."""
        if self._dry_run:
            return Room(slots=self.slots.most)
        slots = self.slots.now
        return self._rooms.room(slots, followers=slots if self._may_follow and slots >= self.slots.most else 0)

    def look(self, limits: Limits, seen: Observation, decision: Decision) -> None:
        """In the guard's thread: learn what there is and who takes it, and end what has to be ended."""
        started = self.gate.started()
        tasks = {one.pid: one.applicant.key for one in started if one.pid}
        allowed_cores = limits.cpu_fraction * self._cores()
        uses = self._rooms.look(limits, seen, tasks, allowed_cores)
        self.gate.watch(uses)
        self.slots.most = self._pool_size()
        tight = decision.levels.get(Resource.CPU, Level.OK) >= Level.THROTTLE
        self.slots.adapt(tight=tight, running=len(started), least=math.ceil(allowed_cores), at=seen.at)
        self._govern(limits, seen)
        self._reclaim(decision, self._rooms.sizes.idle(tasks), seen.at)
        self.evictor.look(limits, seen, decision)
        if self.gate.waiting or decision.changes or (self._reclaimer and self._reclaimer.wants_out):
            self._turned = True
            self._wake()

    def expected_bytes(self) -> float:
        """What memory will be at most, with those tasks that run."""
        return self._rooms.base_bytes + sum(_expected(one) for one in self.gate.started())

    def stop(self) -> None:
        """Hold nobody up any more."""
        if self._governor is not None:
            self._governor.stop()

    def stopped_s(self, pid: int) -> float:
        """How long a pool process has been kept from running: that is no part of its task's time."""
        return self._governor.stopped_s(pid) if self._governor is not None else 0.0

    def _let_go(self, pid: int) -> None:
        if self._governor is not None:
            self._governor.let_go(pid)

    def _govern(self, limits: Limits, seen: Observation) -> None:
        """Slow tasks down as far as the CPU limit asks for it."""
        before, self._seen = self._seen, seen
        if self._governor is None or before is None or seen.at <= before.at:
            return
        limited = Resource.CPU in limits.marks and limits.cpu_fraction < 1.0
        self._allowed_cores = limits.cpu_fraction * self._cores() if limited else math.inf
        self._others_cpu_s += _others_between(before, seen)
        children_cpu_s = {pid: child.cpu_s for pid, child in seen.children.items()}
        self._governor.tick(seen.at, children_cpu_s, self._others_cpu_s)

    def _reclaim(self, decision: Decision, idle_bytes: dict[int, int], at: float) -> None:
        if self._reclaimer is not None:
            tight = decision.levels.get(Resource.MEMORY, Level.OK) >= Level.PAUSE or self.gate.admission.blocked
            self._reclaimer.look(idle_bytes, self._rooms.sizes.fresh_bytes, tight=tight, at=at)

    def _busy_pids(self) -> list[int]:
        return [one.pid for one in self.gate.started() if one.pid]

    def attend(self) -> None:
        """In the worker's own thread: start what may start by now, or give back what must not."""
        self.gate.take_back_late()
        if not self._turned:
            return
        self._turned = False
        if self._reclaimer is not None:
            self._reclaimer.attend()
        if self._valve.is_open:
            self.gate.pump()
            self.gate.give_back_surplus()
        elif count := self.gate.give_back_waiting():
            logger.info("%d tasks that had not started are back in their queues", count)

    def status(self) -> dict[str, object]:
        """What there is for tasks and who has it, in plain values: sizes in bytes beyond an idle process."""
        room, started = self.room(), self.gate.started()
        return {
            "running": sum(one.begin_by is None or one.pid is not None for one in started),
            "waiting": self.gate.waiting,
            "slots": self.slots.now,
            "slots_most": self.slots.most,
            "reserved_bytes": self.gate.admission.reserved_bytes,
            "room_bytes": None if math.isinf(room.memory_bytes) else int(room.memory_bytes),
            "capacity_bytes": self.gate.capacity_bytes(),
            "counts": dict(self.evictor.counts),
            "taken_back": self.gate.taken_back,
            "replaced": self._reclaimer.replaced if self._reclaimer else 0,
            "cpu_held_by": self._governor.means if self._governor else "",
            "started": [
                {
                    "id": one.request.id,
                    "name": one.request.name,
                    "pid": one.pid,
                    "reserved_bytes": one.reserved.memory_bytes,
                    "declared": one.reserved.declared,
                    "runs": one.reserved.runs,
                    "cap_bytes": one.cap_bytes,
                    "use_bytes": one.use_bytes,
                    "peak_bytes": one.peak_bytes,
                    "evictions": one.reserved.evictions,
                }
                for one in started
            ],
        }

    def interval_s(self, limits: Limits, seen: Observation, usual_s: float) -> float:
        """When to look again: sooner the less there is to the hard mark, later while nothing runs."""
        if self.evictor.busy:
            return _SHORTEST_INTERVAL_S
        running = self.gate.started()
        if not running:
            return max(usual_s, _EASY_INTERVAL_S)
        if all(one.applicant.short for one in running) and (self._governor is None or self._governor.is_easy):
            usual_s = max(usual_s, _EASY_INTERVAL_S)
        memory, marks = seen.readings.get(Resource.MEMORY), limits.marks.get(Resource.MEMORY)
        if memory is None or marks is None:
            return usual_s
        left_bytes = max(0.0, marks.hard * memory.limit - memory.value)
        return max(_SHORTEST_INTERVAL_S, min(usual_s, left_bytes / (len(running) * FASTEST_BYTES_PER_S)))


def _expected(one: Started) -> float:
    """What a task will take at most: nobody knows, if it is new or takes more than is reserved for it."""
    reserved = one.reserved
    return reserved.memory_bytes if reserved.trusted and one.use_bytes <= reserved.memory_bytes else math.inf


def _others_between(before: Observation, seen: Observation) -> float:
    """CPU time that all but the pool's processes have used from one look to the next, in seconds."""
    used_by_children_s = sum(
        child.cpu_s - (before.children[pid].cpu_s if pid in before.children else 0.0)
        for pid, child in seen.children.items()
    )
    return max(0.0, seen.cpu_s - before.cpu_s - used_by_children_s)
