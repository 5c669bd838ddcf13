"""What the guard does about tasks at each look, all parts together: only the pool and the readings are made up."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from resource_guard.actions import TreeEnding
from resource_guard.admission import Room
from resource_guard.caps import Used
from resource_guard.cpu_share import CREDIT_S, CpuState
from resource_guard.gate import CAP_HEADER, Started
from resource_guard.keeper import Keeper, _others_between
from resource_guard.limits import Limits
from resource_guard.observation import Change, Decision, Level, Observation, ProcessUse, Reading, Resource
from resource_guard.profiles import Profile
from resource_guard.valve import Valve
from tests.waiting import wait_until

MB = 1_000_000
SHORT = Profile(name="short", runs=64, memory_bytes=MB, peak_bytes=0, cpu_cores=0.1, wall_s=0.001, mostly_s=0.002)
LIMITS = Limits(memory_bytes=1000 * MB)  # paused from 90 % on, and tasks ended from 95 % on


class Knowledge:
    """Nothing is known but of one."""

    def of(self, name: str) -> Profile | None:
        return SHORT if name == SHORT.name else None

    def wants(self, name: str) -> bool:
        return False

    def learn(self, name: str, used: Used) -> None: ...


class World:
    """A keeper and all around it. Its worker has the processes 1 and 2, and takes 100 MB."""

    def __init__(self, **options: Any) -> None:
        self.valve = Valve()
        self.started: list[Any] = []
        self.woken = 0
        self.evicted: list[tuple[str, str]] = []
        self.now = 0.0
        self._ids = itertools.count()
        arguments = {"isolated": True, "on_evicted": self._note} | options
        self.keeper = Keeper(
            self.valve,
            Knowledge(),
            start=self.started.append,
            pool_size=lambda: 2,
            wake=self._wake,
            cores=lambda: 2.0,
            **arguments,
        )

    def _wake(self) -> None:
        self.woken += 1

    def _note(self, one: Started, why: str) -> None:
        self.evicted.append((one.request.name, why))

    def offer(self, name: str, *, memory_mb: int | None = None, pid: int | None = None) -> Any:
        """A task comes in; `pid` is the process that will say it has begun it."""
        request: Any = SimpleNamespace(
            id=f"id-{next(self._ids)}", name=name, request_dict={}, delivery_info={}, worker_pid=pid, ended=None,
            on_end=None, given_back=False,
            task=SimpleNamespace(memory_bytes=memory_mb and memory_mb * MB, cpu_cores=None, acks_late=True),
        )  # fmt: skip
        request.give_back = lambda: setattr(request, "given_back", True)
        self.keeper.gate.handle(request)
        return request

    def look(self, memory_mb: float = 100, *, changed: bool = False, **facts: Any) -> None:
        """One look, a second after the one before."""
        self.now += 1.0
        levels = {Resource(name): level for name, level in facts.pop("levels", {}).items()}
        change = Change(resource=Resource.MEMORY, before=Level.OK, after=Level.PAUSE, reason="so it is")
        decision = Decision(
            levels=levels, reasons=dict.fromkeys(levels, "too much"), changes=(change,) if changed else ()
        )
        self.keeper.look(LIMITS, seen(memory_mb, at=self.now, **facts), decision)


def seen(memory_mb: float, *, at: float = 0.0, children_mb: dict[int, int] | None = None) -> Observation:
    sizes_mb = {1: 20, 2: 20} if children_mb is None else children_mb
    return Observation(
        at=at,
        readings={Resource.MEMORY: Reading(value=memory_mb * MB, limit=1000 * MB)},
        children={
            pid: ProcessUse(pid=pid, rss_bytes=size * MB, cpu_s=0.0, pids=(pid,)) for pid, size in sizes_mb.items()
        },
    )


@pytest.fixture
def world() -> World:
    world = World()
    world.look()
    return world


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """What runs a task, as far as the guard can tell."""
    process = subprocess.Popen(["sleep", "100"])
    yield process
    process.kill()
    process.wait()


class TestRoom:
    def test_it_is_what_the_worker_leaves(self, world: World) -> None:
        assert world.keeper.room() == Room(memory_bytes=800 * MB, slots=2, cpu_cores=2.0)

    def test_a_tight_cpu_takes_slots_and_gives_them_back(self, world: World) -> None:
        for pid in (1, 2):
            world.offer("a", memory_mb=10, pid=pid)
        limits = Limits(memory_bytes=1000 * MB, cpu_fraction=0.5)
        tight = Decision(levels={Resource.CPU: Level.THROTTLE}, reasons={})
        world.keeper.look(limits, seen(100, at=10.0), tight)
        assert world.keeper.room().slots == 1
        world.keeper.look(limits, seen(100, at=20.0), Decision(levels={}, reasons={}))
        assert world.keeper.room().slots == 2

    def test_what_a_task_takes_is_known_and_leaves_less_to_others(self, world: World) -> None:
        world.offer("a", memory_mb=100, pid=1)
        world.look(500, children_mb={1: 420, 2: 20})
        [one] = world.keeper.gate.started()
        assert one.use_bytes == 400 * MB
        waits = world.offer("b", memory_mb=500)
        assert waits not in world.started

    def test_what_memory_will_be_is_known_while_all_keep_to_what_they_declare(self, world: World) -> None:
        world.offer("a", memory_mb=300, pid=1)
        world.look(120, children_mb={1: 40, 2: 20})
        assert world.keeper.expected_bytes() == 400 * MB
        world.look(500, children_mb={1: 420, 2: 20})
        assert world.keeper.expected_bytes() == math.inf

    def test_what_memory_will_be_is_not_known_of_a_task_that_is_new(self, world: World) -> None:
        world.offer("a", pid=1)
        assert world.keeper.expected_bytes() == math.inf

    def test_a_guard_that_could_read_nothing_yet_fails_nobody_and_caps_nobody(self) -> None:
        """It is no reason not to work."""
        world = World()
        requests = [world.offer("declared", memory_mb=600), world.offer("unknown")]
        assert world.started == requests
        assert CAP_HEADER not in requests[0].request_dict | requests[1].request_dict


class TestWhatWaits:
    def test_it_starts_in_the_workers_own_thread_when_there_is_room(self, world: World) -> None:
        """The guard's thread finds out, and wakes the other."""
        world.look(700)
        request = world.offer("a", memory_mb=500)
        assert request not in world.started
        world.look(100)
        assert world.woken
        assert request not in world.started
        world.keeper.attend()
        assert request in world.started

    def test_it_goes_back_to_its_queue_while_the_valve_is_closed(self, world: World) -> None:
        world.look(700)
        request = world.offer("a", memory_mb=500)
        world.valve.pause("too much")
        world.look(950, changed=True)
        world.keeper.attend()
        assert request.given_back
        assert world.keeper.gate.waiting == 0

    def test_as_long_as_nothing_does_nobody_is_woken(self, world: World) -> None:
        world.offer("a", memory_mb=10, pid=1)
        world.look(120)
        assert world.woken == 0

    def test_nothing_is_attended_to_twice(self, world: World) -> None:
        """The event loop comes by at each of its turns."""
        world.look(700)
        world.offer("a", memory_mb=500)
        world.look(700)
        world.keeper.attend()
        world.keeper._rooms.look(LIMITS, seen(100), {}, 2.0)
        world.keeper.attend()
        assert world.started == []


class TestEviction:
    def test_over_the_hard_mark_a_task_is_ended_and_that_is_told(
        self, world: World, process: subprocess.Popen[bytes]
    ) -> None:
        children_mb = {process.pid: 20, 2: 20}
        world.look(children_mb=children_mb)
        world.offer("hog", pid=process.pid)
        hungry_mb = {process.pid: 620, 2: 20}
        world.look(960, children_mb=hungry_mb, levels={"memory": Level.EVICT})

        def told() -> bool:
            world.look(400, children_mb=children_mb)
            return bool(world.evicted)

        assert world.keeper.evictor.busy
        wait_until(told, what="the end of the task")
        assert world.evicted == [("hog", "too much")]
        assert process.wait(5) != 0
        counts: Any = world.keeper.status()["counts"]
        assert counts == {"evicted": 1}

    def test_a_dry_run_caps_nobody_and_ends_nobody(self, process: subprocess.Popen[bytes]) -> None:
        world = World(dry_run=True)
        world.look(children_mb={process.pid: 20})
        request = world.offer("hog", memory_mb=100, pid=process.pid)
        assert CAP_HEADER not in request.request_dict
        world.look(990, children_mb={process.pid: 820}, levels={"memory": Level.EVICT})
        assert not world.keeper.evictor.busy
        assert process.poll() is None

    def test_nor_does_it_hold_back_what_does_not_fit_or_never_could(self, caplog: pytest.LogCaptureFixture) -> None:
        world = World(dry_run=True)
        world.look(100)
        requests = [world.offer("a", memory_mb=600), world.offer("b", memory_mb=6000)]
        assert world.started == requests
        assert "would fail task b[id-1]: b declares memory='6 GB'" in caplog.text
        assert world.keeper.room().memory_bytes == math.inf


class TestReclaiming:
    def test_a_fat_idle_process_is_taken_out_when_a_task_waits_for_its_memory(self) -> None:
        taken_out: list[int] = []

        def take_out(pid: int) -> TreeEnding | None:
            taken_out.append(pid)
            return None

        world = World(take_out=take_out)
        world.look()
        world.look(700, children_mb={1: 20, 2: 600})
        world.offer("a", memory_mb=500)
        world.look(700, children_mb={1: 20, 2: 600})
        assert taken_out == []
        world.keeper.attend()
        assert taken_out == [2]

    def test_where_none_can_be_taken_out_nobody_tries(self, world: World) -> None:
        world.look(950, children_mb={1: 20, 2: 800}, levels={"memory": Level.PAUSE})
        world.keeper.attend()
        assert world.keeper.status()["replaced"] == 0


class TestTheNextLook:
    def test_while_nothing_runs_it_may_be_late(self, world: World) -> None:
        assert world.keeper.interval_s(LIMITS, seen(100), 0.1) == 0.5
        assert world.keeper.interval_s(LIMITS, seen(940), 0.1) == 0.5

    @pytest.mark.parametrize(
        ("running", "memory_mb", "interval_s"),
        [(1, 100, 0.1), (1, 749, 0.1), (1, 850, 0.05), (2, 850, 0.025), (1, 940, 0.02), (1, 2000, 0.02)],
        ids=["far", "just far enough", "nearer", "two take twice as much", "near", "over"],
    )
    def test_it_comes_before_memory_can_be_full(
        self, world: World, running: int, memory_mb: int, interval_s: float
    ) -> None:
        """At 2 GB/s a task from here to the hard mark; never more than fifty times a second."""
        for pid in range(1, 1 + running):
            world.offer("a", memory_mb=10, pid=pid)
        assert world.keeper.interval_s(LIMITS, seen(memory_mb), 0.1) == pytest.approx(interval_s)

    @pytest.mark.parametrize(
        ("memory_mb", "interval_s"), [(100, 0.425), (850, 0.05)], ids=["plenty is left", "not so much is left"]
    )
    def test_while_only_short_ones_run_it_is_as_late_as_memory_allows(
        self, world: World, memory_mb: int, interval_s: float
    ) -> None:
        world.offer("short", memory_mb=1, pid=1)
        assert world.keeper.interval_s(LIMITS, seen(memory_mb), 0.1) == pytest.approx(interval_s)
        world.offer("a", memory_mb=1, pid=2)
        assert world.keeper.interval_s(LIMITS, seen(100), 0.1) == 0.1

    def test_short_ones_that_use_what_cpu_is_allowed_are_watched_as_usual(self) -> None:
        world = World(govern=True)
        world.offer("short", memory_mb=1, pid=1)
        governor = world.keeper._governor
        assert governor is not None
        governor._has_begun, governor._allowed_cores, governor._state = True, lambda: 1.0, CpuState(debt_core_s=0.0)
        assert world.keeper.interval_s(LIMITS, seen(100), 0.1) == 0.1
        governor._state = CpuState(debt_core_s=-CREDIT_S)
        assert world.keeper.interval_s(LIMITS, seen(100), 0.1) > 0.4

    def test_without_a_reading_or_a_limit_it_is_as_usual(self, world: World) -> None:
        world.offer("a", memory_mb=10, pid=1)
        assert world.keeper.interval_s(LIMITS, Observation(at=0.0, readings={}), 0.1) == 0.1
        unwatched = Limits(memory_bytes=1000 * MB, marks={})
        assert world.keeper.interval_s(unwatched, seen(940), 0.1) == 0.1

    def test_it_is_soon_while_somebody_is_being_ended(self, world: World, process: subprocess.Popen[bytes]) -> None:
        world.look(children_mb={process.pid: 20})
        world.offer("hog", pid=process.pid)
        world.look(960, children_mb={process.pid: 620}, levels={"memory": Level.EVICT})
        assert world.keeper.interval_s(LIMITS, seen(100), 0.1) == 0.02


def test_status_says_who_has_what_in_plain_values(world: World) -> None:
    request = world.offer("a.task", memory_mb=100, pid=1)
    world.offer("b.task", memory_mb=750)
    world.look(150, children_mb={1: 70, 2: 20})
    status: Any = json.loads(json.dumps(world.keeper.status()))
    assert status["started"] == [
        {
            "id": request.id, "name": "a.task", "pid": 1, "reserved_bytes": 100 * MB, "declared": True, "runs": 0,
            "cap_bytes": 142 * MB, "use_bytes": 50 * MB, "peak_bytes": 50 * MB, "evictions": 0,
        }
    ]  # fmt: skip
    assert (status["running"], status["waiting"], status["slots"], status["slots_most"]) == (1, 1, 2, 2)
    assert (status["reserved_bytes"], status["room_bytes"]) == (100 * MB, 800 * MB)


def test_status_before_anything_was_read_is_plain_too() -> None:
    assert json.loads(json.dumps(World().keeper.status()))["room_bytes"] is None


def test_a_keeper_that_governs_nobody_holds_nobody_up(world: World) -> None:
    assert world.keeper.stopped_s(1) == 0.0
    world.keeper.stop()


def test_cpu_time_of_others_is_all_but_the_pools() -> None:
    """A process that has come since counts from its beginning; one that has ended leaves nothing negative."""

    def at(cpu_s: float, **children_cpu_s: float) -> Observation:
        children = {
            int(pid[1:]): ProcessUse(pid=int(pid[1:]), rss_bytes=0, cpu_s=used, pids=())
            for pid, used in children_cpu_s.items()
        }
        return Observation(at=0.0, readings={}, children=children, cpu_s=cpu_s)

    assert _others_between(at(10.0, p1=4.0), at(13.0, p1=5.0, p2=0.5)) == pytest.approx(1.5)
    assert _others_between(at(10.0, p1=4.0), at(10.5, p1=5.0)) == 0.0
    assert _others_between(at(10.0, p1=4.0, p2=1.0), at(11.0, p1=4.5)) == pytest.approx(0.5)
