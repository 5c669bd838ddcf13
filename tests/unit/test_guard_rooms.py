"""What there is for tasks, from what is seen."""

from __future__ import annotations

import pytest

from resource_guard.admission import Room
from resource_guard.limits import Limits
from resource_guard.observation import Observation, ProcessUse, Reading, Resource
from resource_guard.rooms import Rooms

MB = 1_000_000
LIMITS = Limits(memory_bytes=1000 * MB, cpu_fraction=0.6)  # paused from 90 % on


def seen(tree_mb: float, *, children_mb: dict[int, int] | None = None, left_mb: float = 9000) -> Observation:
    return Observation(
        at=0.0,
        readings={
            Resource.MEMORY: Reading(value=tree_mb * MB, limit=1000 * MB),
            Resource.MEMORY_FREE: Reading(value=left_mb * MB, limit=500 * MB, floor=True),
        },
        children={
            pid: ProcessUse(pid=pid, rss_bytes=size_mb * MB, cpu_s=0.0, pids=(pid,))
            for pid, size_mb in (children_mb or {}).items()
        },
    )


def look(rooms: Rooms, observation: Observation, busy: list[int] | None = None) -> dict[int, int]:
    uses = rooms.look(LIMITS, observation, {pid: pid for pid in busy or []}, cores=1.2)
    return {pid: use // MB for pid, use in uses.items()}


@pytest.fixture
def rooms() -> Rooms:
    rooms = Rooms()
    look(rooms, seen(100, children_mb={1: 20, 2: 20}))
    return rooms


def test_before_the_first_look_only_places_are_counted() -> None:
    """A guard that can read nothing is no reason not to work."""
    assert Rooms().room(3).memory_bytes == float("inf")
    assert Rooms().room(3).slots == 3


def test_tasks_may_have_what_the_worker_itself_leaves(rooms: Rooms) -> None:
    assert rooms.room(2).memory_bytes == 800 * MB
    assert rooms.capacity_bytes() == 800 * MB
    assert rooms.room(2).cpu_cores == 1.2


def test_what_a_task_takes_is_beyond_what_its_process_had_and_leaves_the_room_as_it_is(rooms: Rooms) -> None:
    """The reservations count what tasks take; the room is what all of them may have together."""
    assert look(rooms, seen(400, children_mb={1: 320, 2: 20}), busy=[1]) == {1: 300}
    assert rooms.room(2).memory_bytes == 800 * MB


def test_what_a_task_has_left_behind_leaves_less_to_the_next(rooms: Rooms) -> None:
    look(rooms, seen(400, children_mb={1: 320, 2: 20}))
    assert rooms.room(2).memory_bytes == 500 * MB
    assert rooms.capacity_bytes() == 800 * MB  # as it was and will be: a declared task is not refused for it


def test_others_on_the_machine_leave_less(rooms: Rooms) -> None:
    look(rooms, seen(100, children_mb={1: 20, 2: 20}, left_mb=700))
    assert rooms.room(2).memory_bytes == 200 * MB


def test_what_tasks_have_already_counts_as_theirs_when_the_machine_is_short(rooms: Rooms) -> None:
    look(rooms, seen(400, children_mb={1: 320, 2: 20}, left_mb=600), busy=[1])
    assert rooms.room(2).memory_bytes == 400 * MB


def test_more_is_used_than_there_is(rooms: Rooms) -> None:
    look(rooms, seen(2000, children_mb={1: 20, 2: 20}, left_mb=0))
    assert rooms.room(2).memory_bytes == 0


def test_a_resource_that_is_not_watched_limits_nobody() -> None:
    """`AGENTLINK_GUARD_OFF=memory` means it; what the machine must keep is another resource, and still kept."""
    rooms = Rooms()
    off = {Resource.MEMORY}
    unwatched = Limits(
        memory_bytes=1000 * MB, marks={name: one for name, one in LIMITS.marks.items() if name not in off}
    )
    rooms.look(unwatched, seen(5000, left_mb=700), {}, cores=1.2)
    assert rooms.room(2) == Room(memory_bytes=200 * MB, slots=2, cpu_cores=1.2)
    assert rooms.capacity_bytes() == 0
    rooms = Rooms()
    rooms.look(Limits(memory_bytes=1000 * MB, marks={}), seen(5000, left_mb=0), {}, cores=1.2)
    assert rooms.room(2) == Room(slots=2)
