"""What there is for tasks: memory that nothing else takes, tasks at a time, cores. Plain data, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from resource_guard.admission import Room
from resource_guard.idle import IdleSizes
from resource_guard.limits import Limits
from resource_guard.observation import Observation, Resource


class Rooms:
    """Told of each look at the machine; says what tasks may have together, and what each takes beyond an idle process.

    What tasks may have is the memory limit up to its soft mark, less what is there without any task: the worker itself,
    its idle processes, the broker, other workers.
    """

    def __init__(self, told: Mapping[int, int] = MappingProxyType({})) -> None:
        self.sizes = IdleSizes(told)
        # As of the last look: it is asked for with every task.
        self._room: Room | None = None
        self._mark_bytes = 0.0
        self.base_bytes = 0.0
        #: The least that was ever there without tasks: what one task could have at best.
        self._least_base_bytes = float("inf")
        self._free_bytes = float("inf")
        self._cores = float("inf")

    def look(self, limits: Limits, seen: Observation, tasks: Mapping[int, int], cores: float) -> dict[int, int]:
        """What the task of each busy process takes. `tasks` says which one that is; `cores` is all that may be used."""
        self.sizes.look(seen.children, tasks)
        uses = {
            pid: max(0, child.rss_bytes - self.sizes.of(pid)) for pid, child in seen.children.items() if pid in tasks
        }
        taken = sum(uses.values())
        memory, left = seen.readings.get(Resource.MEMORY), seen.readings.get(Resource.MEMORY_FREE)
        marks = limits.marks.get(Resource.MEMORY)
        if memory is not None:
            self._mark_bytes = memory.limit * (marks.pause or 1.0) if marks else float("inf")
            self.base_bytes = max(0.0, memory.value - taken)
            self._least_base_bytes = min(self._least_base_bytes, self.base_bytes)
        if left is not None and Resource.MEMORY_FREE in limits.marks:
            self._free_bytes = max(0.0, left.value - left.limit) + taken
        self._cores = cores if Resource.CPU in limits.marks else float("inf")
        self._room = None
        return uses

    def room(self, slots: int, followers: int = 0) -> Room:
        """What all tasks may have together now."""
        room = self._room  # which a look in another thread may forget meanwhile
        if room is None or room.slots != slots or room.followers != followers:
            room = self._room = self._new_room(slots, followers)
        return room

    def _new_room(self, slots: int, followers: int) -> Room:
        if not self._mark_bytes:  # nothing could be read yet
            return Room(slots=slots, followers=followers)
        memory_bytes = max(0.0, min(self._mark_bytes - self.base_bytes, self._free_bytes))
        return Room(memory_bytes=memory_bytes, slots=slots, cpu_cores=self._cores, followers=followers)

    def capacity_bytes(self) -> int:
        """What one task alone can ever have here; 0 while that is not known, and where memory is not limited."""
        if not 0 < self._mark_bytes < float("inf"):
            return 0
        base = self._least_base_bytes if self._least_base_bytes != float("inf") else 0.0
        return max(0, int(self._mark_bytes - base))
