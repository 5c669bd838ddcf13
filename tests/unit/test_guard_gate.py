"""The gate between a worker's consumer and its pool: what starts, with what, and what becomes of the rest."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from resource_guard.admission import Admission, Room
from resource_guard.caps import Used
from resource_guard.followers import BEGIN_BY_HEADER, BEGIN_WITHIN_S, SEEN_RUNS, SHORT_S, is_short
from resource_guard.gate import CAP_HEADER, EVICTED_HEADER, LOOK_AHEAD, MEASURE_HEADER, SURPLUS_AFTER_S, Ended, Gate
from resource_guard.profiles import Profile
from resource_guard.reservations import DECLARED_HEADER

MB = 1_000_000
SHORT = Profile(name="short", runs=SEEN_RUNS, memory_bytes=MB, peak_bytes=0, cpu_cores=1, wall_s=0, mostly_s=SHORT_S)
_ids = itertools.count()


@dataclass(eq=False)
class Request:
    """As much of a worker's request as the gate asks for."""

    name: str = "a.task"
    memory_mb: int | None = None
    cores: float | None = None
    headers: dict[str, Any] = field(default_factory=dict)
    priority: int = 0
    worker_pid: int | None = None
    ended: Ended | None = None
    on_end: Callable[[Any, Used | None], None] | None = None
    on_not_begun: Callable[[Any], None] | None = None
    acks_late: bool = True
    refused: Exception | None = None
    given_back: bool = False

    def __post_init__(self) -> None:
        self.id = str(next(_ids))
        memory_bytes = None if self.memory_mb is None else self.memory_mb * MB
        self.task = SimpleNamespace(memory_bytes=memory_bytes, cpu_cores=self.cores, acks_late=self.acks_late)
        self.request_dict = self.headers
        self.delivery_info = {"priority": self.priority}

    def refuse(self, error: Exception) -> None:
        self.refused = error

    def give_back(self) -> None:
        self.given_back = True


@dataclass
class Knowledge:
    """What earlier runs have taught, as a test says."""

    profiles: dict[str, Profile] = field(default_factory=dict)
    learned: list[tuple[str, Used]] = field(default_factory=list)

    def of(self, name: str) -> Profile | None:
        return self.profiles.get(name)

    def wants(self, name: str) -> bool:
        return name != "known.well"

    def learn(self, name: str, used: Used) -> None:
        self.learned.append((name, used))


@dataclass
class World:
    """A gate and all around it."""

    memory_mb: int = 1000
    slots: int = 2
    is_open: bool = True
    isolated: bool = True
    knowledge: Knowledge = field(default_factory=Knowledge)
    started: list[Request] = field(default_factory=list)
    followers: int = 0
    now: float = 0.0
    #: Whether what was handed to a process can be taken back: it has not said that it began.
    is_silent: bool = True
    busy: int = 0

    def __post_init__(self) -> None:
        self.gate = Gate(
            Admission(),
            self.knowledge,
            self.started.append,
            is_open=lambda: self.is_open,
            room=lambda: Room(memory_bytes=self.memory_mb * MB, slots=self.slots, followers=self.followers),
            capacity_bytes=lambda: 1000 * MB,
            cores=lambda: 2,
            isolated=self.isolated,
            withdraw=lambda _: self.is_silent,
            on_busy=self.on_busy,
            clock=lambda: self.now,
        )

    def on_busy(self) -> None:
        self.busy += 1

    def handle(self, *requests: Request) -> None:
        for request in requests:
            self.gate.handle(request)

    def end(self, request: Request, used: Used | None = None) -> None:
        assert request.on_end is not None
        request.on_end(request, used)


@pytest.fixture
def world() -> World:
    return World()


def test_what_fits_starts_and_the_next_when_one_ends(world: World) -> None:
    first, second, third = Request(memory_mb=600), Request(memory_mb=600), Request(memory_mb=300)
    world.handle(first, second, third)
    assert world.started == [first, third]
    assert world.gate.waiting == 1
    world.end(first)
    assert world.started == [first, third, second]
    assert [one.request for one in world.gate.started()] == [third, second]


def test_what_a_call_declares_holds_in_place_of_what_its_task_does(world: World) -> None:
    first = Request(memory_mb=100, cores=2, headers={DECLARED_HEADER: [600 * MB, None]})
    second = Request(memory_mb=900, headers={DECLARED_HEADER: [500 * MB, 0.5]})
    third = Request(memory_mb=900, headers={DECLARED_HEADER: [300 * MB, None]})
    world.handle(first, second, third)
    assert world.started == [first, third]
    one, _ = world.gate.started()
    assert (one.reserved.memory_bytes, one.reserved.cpu_cores, one.reserved.declared) == (600 * MB, 2, True)
    assert first.headers[CAP_HEADER][1] is None


def test_the_start_of_one_that_may_take_long_is_told_while_no_other_such_runs() -> None:
    world = World(slots=4, knowledge=Knowledge({"short": SHORT}))
    first, second = Request(), Request()
    world.handle(Request(name="short"))
    assert world.busy == 0
    world.handle(first)
    assert world.busy == 1
    world.handle(second, Request(name="short"))
    world.end(first)
    assert world.busy == 1
    world.end(second)
    world.handle(Request())
    assert world.busy == 2


def test_nothing_starts_while_the_valve_is_closed_and_what_waits_goes_back_to_its_queue(world: World) -> None:
    world.is_open = False
    first, second = Request(), Request()
    world.handle(first, second)
    assert not world.started
    assert world.gate.give_back_waiting() == 2
    assert first.given_back
    assert second.given_back
    world.is_open = True
    world.gate.pump()
    assert not world.started


def test_what_goes_down_with_its_connection_is_forgotten_and_not_given_back(world: World) -> None:
    world.is_open = False
    request = Request()
    world.handle(request)
    world.gate.drop_waiting()
    world.is_open = True
    world.gate.pump()
    assert (world.started, request.given_back) == ([], False)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Request(memory_mb=100, headers={DECLARED_HEADER: [1200 * MB, None]}), "declares memory='1.2 GB'"),
        (Request(headers={DECLARED_HEADER: [None, 3]}), "declares cpu='3 cores'"),
        (Request(memory_mb=1200), "declares memory='1.2 GB', and there are 1 GB at most"),
        (Request(cores=3), "declares cpu='3 cores', and there are 2 at most"),
    ],
)
def test_what_can_never_fit_fails_at_once(world: World, request_: Request, says: str) -> None:
    world.handle(request_)
    assert says in str(request_.refused)
    assert not world.started
    assert world.gate.waiting == 0


def test_each_is_told_what_it_may_take(world: World) -> None:
    """A declared one gets what it declares and some more; an unknown one all that is not reserved for others."""
    declared, unknown = Request(memory_mb=400), Request()
    world.handle(declared, unknown)
    assert declared.headers[CAP_HEADER] == [472 * MB, None]
    assert unknown.headers[CAP_HEADER] == [600 * MB, 1000 * MB]


def test_a_task_without_a_process_of_its_own_is_neither_capped_nor_measured() -> None:
    """What one of several threads takes can't be told, and a cap would be for all."""
    world = World(isolated=False)
    request = Request(memory_mb=400)
    world.handle(request)
    assert world.started == [request]
    assert request.headers == {}


def test_what_is_well_known_is_measured_only_now_and_then(world: World) -> None:
    first, second = Request(), Request("known.well")
    world.handle(first, second)
    assert (first.headers[MEASURE_HEADER], second.headers[MEASURE_HEADER]) == (True, False)


def test_an_evicted_task_reserves_what_its_message_says(world: World) -> None:
    evicted, other = Request(headers={EVICTED_HEADER: [1, 800 * MB]}), Request(memory_mb=300)
    world.handle(evicted, other)
    assert world.started == [evicted]


def test_what_was_measured_is_learned_with_what_was_seen_of_its_programs(world: World) -> None:
    request = Request()
    world.handle(request)
    request.worker_pid = 11
    world.gate.watch({11: 300 * MB})
    world.gate.watch({11: 5 * MB})
    world.end(request, Used(peak_bytes=20 * MB, cpu_s=0.1, wall_s=0.2))
    assert world.knowledge.learned == [("a.task", Used(peak_bytes=300 * MB, cpu_s=0.1, wall_s=0.2))]


def test_a_task_that_takes_more_than_reserved_leaves_less_to_others(world: World) -> None:
    request = Request(memory_mb=100)
    world.handle(request)
    request.worker_pid = 11
    world.gate.watch({11: 700 * MB})
    other = Request(memory_mb=400)
    world.handle(other)
    assert other not in world.started
    world.end(request)
    assert other in world.started


def test_an_end_is_told_once_or_twice_and_counts_once(world: World) -> None:
    request, waiting, last = Request(memory_mb=900), Request(memory_mb=900), Request(memory_mb=900)
    world.handle(request, waiting, last)
    world.end(request)
    world.gate.finished(request)
    assert world.started == [request, waiting]


def test_tasks_nobody_will_tell_of_any_more_free_their_place(world: World) -> None:
    lost, alive, waiting = Request(), Request(), Request()
    world.handle(lost, alive, waiting)
    world.gate.finish_all_but([alive])
    assert world.started == [lost, alive, waiting]


def test_more_is_taken_in_only_to_find_what_fits_beside_one_that_does_not(world: World) -> None:
    world.handle(Request(memory_mb=600))
    assert world.gate.look_ahead == 0
    world.handle(Request(memory_mb=600))
    assert world.gate.look_ahead == LOOK_AHEAD
    world.is_open = False
    assert world.gate.look_ahead == 0


def test_nothing_more_is_taken_in_while_all_places_are_taken(world: World) -> None:
    """It could not start here, however little it takes; another worker may have a place for it."""
    world.handle(Request(memory_mb=600), Request(memory_mb=600), Request(memory_mb=10))
    assert len(world.started) == 2
    assert world.gate.look_ahead == 0
    world.end(world.started[1])
    assert world.gate.look_ahead == LOOK_AHEAD


def test_what_was_taken_in_to_find_what_fits_goes_back_when_places_are_taken_for_long(world: World) -> None:
    """What waits for room stays: it is not to begin its waiting anew."""
    large, *small = Request(memory_mb=600), *(Request(memory_mb=10) for _ in range(4))
    world.handle(Request(memory_mb=600), large, *small)
    assert world.gate.give_back_surplus() == 0
    world.gate._clock = lambda: SURPLUS_AFTER_S
    assert world.gate.give_back_surplus() == 3
    assert [request.given_back for request in (large, *small)] == [False, False, True, True, True]
    assert world.gate.waiting == 1
    world.end(world.started[1])
    assert world.gate.give_back_surplus() == 0
    world.end(world.started[0])
    assert large in world.started


def test_a_pool_that_runs_a_task_at_once_starts_each_once() -> None:
    """The solo pool ends a task before it returns from starting it."""
    world = World(slots=1)
    world.gate._start = lambda request: (world.started.append(request), world.end(request))
    world.handle(first := Request(), second := Request())
    assert world.started == [first, second]
    assert world.gate.started() == []


def following(*requests: Request) -> World:
    """One process, which may be handed a second task, and what has been handed out."""
    world = World(slots=1, followers=1, knowledge=Knowledge({"short": SHORT}))
    world.handle(*requests)
    return world


@pytest.mark.parametrize(
    ("known", "says"),
    [
        (SHORT, True),
        (replace(SHORT, runs=SEEN_RUNS - 1), False),
        (replace(SHORT, mostly_s=1.1 * SHORT_S), False),
        (None, False),
    ],
    ids=["mostly takes no longer", "seen too rarely", "takes longer", "unknown"],
)
def test_short_is_what_was_never_seen_to_take_long(known: Profile | None, says: bool) -> None:
    assert is_short(known) is says


def test_a_short_task_follows_another_and_says_by_when_it_is_to_begin() -> None:
    first, second = Request("short"), Request("short")
    world = following(first, second)
    assert world.started == [first, second]
    assert BEGIN_BY_HEADER not in first.request_dict
    assert second.request_dict[BEGIN_BY_HEADER] == BEGIN_WITHIN_S


@pytest.mark.parametrize(
    "second",
    [
        Request("short", headers={EVICTED_HEADER: [1, MB]}),
        Request("short", acks_late=False),
        Request("short", headers={"root_id": "a run's"}),
        Request("a.task"),
    ],
    ids=["one that was evicted", "one that could not go back", "a step of a run", "an unknown one"],
)
def test_others_wait_until_a_process_is_free(second: Request) -> None:
    first = Request("short")
    world = following(first, second)
    assert world.started == [first]
    world.end(first)
    assert world.started == [first, second]
    assert BEGIN_BY_HEADER not in second.request_dict


def test_a_follower_that_is_not_begun_in_time_starts_again_when_a_process_is_free() -> None:
    first, second = Request("short"), Request("short")
    world = following(first, second)
    world.now = BEGIN_WITHIN_S
    world.gate.take_back_late()
    assert world.gate.taken_back == 0  # its time is not over
    world.now += 0.001
    world.slots = 2
    world.gate.take_back_late()
    assert world.started == [first, second, second]
    assert BEGIN_BY_HEADER not in second.request_dict
    assert world.gate.taken_back == 1
    world.end(second)
    assert [one.request for one in world.gate.started()] == [first]


def test_a_follower_that_may_have_been_begun_is_left_where_it_is() -> None:
    first, second = Request("short"), Request("short")
    world = following(first, second)
    world.now, world.is_silent = 2 * BEGIN_WITHIN_S, False
    world.gate.take_back_late()
    assert world.started == [first, second]
    world.is_silent, second.worker_pid = True, 7  # what it had said has been read by now
    world.gate.take_back_late()
    assert world.started == [first, second]
    assert world.gate.taken_back == 0


def test_a_follower_whose_process_came_to_it_too_late_starts_again() -> None:
    first, second = Request("short"), Request("short")
    world = following(first, second)
    world.end(first)
    assert second.on_not_begun
    second.on_not_begun(second)
    assert world.started == [first, second, second]
    world.now = 10.0
    world.gate.take_back_late()
    assert world.started == [first, second, second]
