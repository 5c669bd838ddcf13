"""When a level begins and ends: tables for the rule. What must hold whatever happens: `test_guard_policy_traces`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest

from resource_guard.limits import Limits, Marks
from resource_guard.observation import Decision, Level, Observation, Reading, Resource
from resource_guard.policy import REACTION_S, State, Track, decide

MB = 1_000_000
MEMORY, CPU, MEMORY_FREE = Resource.MEMORY, Resource.CPU, Resource.MEMORY_FREE
# Of 300 MB: pause at 255, resume below 225, evict at 285.
MEMORY_MARKS = Marks(pause=0.85, resume=0.75, evict=0.95, readings_off=2, rest_s=1.0)
# 500 MB must stay free; resume from 625 on.
FREE_MARKS = Marks(pause=1.0, resume=0.8, readings_off=2, rest_s=1.0)
CPU_MARKS = Marks(throttle=0.9, resume=0.8, evict=1.0, readings_on=2, readings_off=2)
LIMITS = Limits(memory_bytes=300 * MB, marks={MEMORY: MEMORY_MARKS, MEMORY_FREE: FREE_MARKS, CPU: CPU_MARKS})


def memory(value_mb: float) -> Reading:
    return Reading(value=value_mb * MB, limit=300 * MB)


def free(value_mb: float) -> Reading:
    return Reading(value=value_mb * MB, limit=500 * MB, floor=True)


def cpu(fraction: float) -> Reading:
    return Reading(value=0.6 * fraction, limit=0.6)


def look(at: float, **readings: Reading | None) -> Observation:
    return Observation(at=at, readings={Resource(name): one for name, one in readings.items() if one is not None})


def replay(trace: list[Observation], limits: Limits = LIMITS) -> Iterator[tuple[Observation, Decision]]:
    state = State()
    for seen in trace:
        state, decision = decide(limits, state, seen)
        yield seen, decision


def at_level(resource: Resource, level: Level, *, since: float = 0.0, clear: int = 0) -> State:
    paused_at = since if level >= Level.PAUSE else None
    return State(tracks={resource: Track(level=level, paused_at=paused_at, clear=clear)})


@pytest.mark.parametrize(
    ("readings", "levels"),
    [
        ({"memory": memory(100)}, {MEMORY: Level.OK}),
        ({"memory": memory(254.9)}, {MEMORY: Level.OK}),
        ({"memory": memory(255)}, {MEMORY: Level.PAUSE}),
        ({"memory": memory(284.9)}, {MEMORY: Level.PAUSE}),
        ({"memory": memory(285)}, {MEMORY: Level.EVICT}),
        ({"memory_free": free(500.1)}, {MEMORY_FREE: Level.OK}),
        ({"memory_free": free(500)}, {MEMORY_FREE: Level.PAUSE}),
        ({"memory_free": free(0)}, {MEMORY_FREE: Level.PAUSE}),
        ({"memory": memory(290), "memory_free": free(0)}, {MEMORY: Level.EVICT, MEMORY_FREE: Level.PAUSE}),
    ],
)
def test_one_reading_at_a_mark_begins_its_level(readings: Mapping[str, Reading], levels: dict[Resource, Level]) -> None:
    """Each resource on its own; the decision's level is that of the worst."""
    _, decision = decide(LIMITS, State(), look(7.0, **readings))
    assert {resource: decision.levels[resource] for resource in levels} == levels
    assert decision.level is max(levels.values())
    assert [change.resource for change in decision.changes] == [name for name, level in levels.items() if level]


def test_where_several_readings_are_asked_for_one_alone_changes_nothing() -> None:
    """They count each mark on its own: the second of two is at the hard mark, the first was not."""
    levels, state = [], State()
    for at, fraction in enumerate([0.95, 0.85, 0.95, 1.1, 1.1, 1.1]):
        state, decision = decide(LIMITS, state, look(at, cpu=cpu(fraction)))
        levels.append(decision.levels[CPU])
    assert levels == [Level.OK, Level.OK, Level.OK, Level.THROTTLE, Level.EVICT, Level.EVICT]


@pytest.mark.parametrize(
    ("value_mb", "paused_s", "clear", "after"),
    [
        (224.9, 1.0, 1, Level.OK),
        (224.9, 0.9, 1, Level.PAUSE),  # it has to rest
        (224.9, 9.0, 0, Level.PAUSE),  # one reading does not make it so
        (225, 9.0, 1, Level.PAUSE),  # below the soft mark is not enough
        (260, 9.0, 1, Level.PAUSE),
        (290, 9.0, 1, Level.EVICT),
    ],
)
def test_a_pause_ends_only_well_below_for_some_readings_and_after_a_rest(
    value_mb: float, paused_s: float, clear: int, after: Level
) -> None:
    """All three must hold, so a reading that trembles around one mark changes nothing."""
    state = at_level(MEMORY, Level.PAUSE, since=10.0, clear=clear)
    assert decide(LIMITS, state, look(10.0 + paused_s, memory=memory(value_mb)))[1].levels[MEMORY] is after


@pytest.mark.parametrize(("resource", "reading", "after"), [
    (MEMORY, memory(284.9), Level.PAUSE),
    (CPU, cpu(0.99), Level.THROTTLE),
])  # fmt: skip
def test_eviction_ends_with_the_first_reading_below_the_hard_mark(
    resource: Resource, reading: Reading, after: Level
) -> None:
    """What is left is the worst level that is not eviction; the CPU has no pause."""
    decision = decide(LIMITS, at_level(resource, Level.EVICT), look(0.1, **{resource: reading}))[1]
    assert decision.levels[resource] is after


@pytest.mark.parametrize(
    ("before", "after"), [(Level.OK, Level.OK), (Level.PAUSE, Level.PAUSE), (Level.EVICT, Level.PAUSE)]
)
def test_a_gap_in_the_readings_keeps_the_level_but_ends_no_work(before: Level, after: Level) -> None:
    """Nobody knows whether it is still over the hard mark; nobody knows that it is clear."""
    decision = decide(LIMITS, at_level(MEMORY, before, clear=99), look(1000.0))[1]
    assert decision.levels[MEMORY] is after
    if after:
        assert decision.reasons[MEMORY] == (
            "memory of this worker's processes can't be read at the moment, so nothing changes"
        )


def test_a_resource_that_is_switched_off_is_well_again() -> None:
    """In a running system: its level must not hold what nobody watches any more."""
    without = replace(LIMITS, marks={CPU: CPU_MARKS})
    state, decision = decide(without, at_level(MEMORY, Level.PAUSE), look(0.1, memory=memory(299)))
    assert (decision.levels, decision.reasons) == ({CPU: Level.OK}, {})
    (change,) = decision.changes
    assert (change.before, change.after) == (Level.PAUSE, Level.OK)
    assert change.reason == "memory of this worker's processes is not watched any more"
    assert decide(without, state, look(0.2))[1].changes == ()


class TestLookingAhead:
    """Tasks that run already go on growing while a pause takes hold, so it begins before the mark."""

    @staticmethod
    def replay_mb(values_mb: list[float], step_s: float = 0.1) -> list[Level]:
        trace = [look(index * step_s, memory=memory(value)) for index, value in enumerate(values_mb)]
        return [decision.levels[MEMORY] for _, decision in replay(trace)]

    def test_steady_growth_pauses_before_the_soft_mark(self) -> None:
        """At 200 MB/s it would be over 285 MB within 0.3 s from 225 MB on."""
        levels = self.replay_mb([140, 160, 180, 200, 220, 240])
        assert levels == [Level.OK] * 5 + [Level.PAUSE]
        assert REACTION_S == 0.3

    def test_slow_growth_does_not(self) -> None:
        """Until it reaches the mark."""
        assert self.replay_mb([200 + index for index in range(60)]) == [Level.OK] * 55 + [Level.PAUSE] * 5

    def test_a_jump_is_not_growth(self) -> None:
        """A task that takes 100 MB at once and no more would else pause a worker with room."""
        assert set(self.replay_mb([100] * 8 + [200] * 20)) == {Level.OK}

    def test_readings_of_long_ago_say_nothing(self) -> None:
        """After a suspend, or with looks too far apart, there is no slope to go by."""
        assert set(self.replay_mb([100, 130, 160, 190, 220, 250], step_s=10)) == {Level.OK}

    def test_growth_that_was_known_of_does_not(self) -> None:
        """Tasks that have just begun, and will not take more than is reserved for them."""
        for expected_mb, level in ((250, Level.OK), (290, Level.PAUSE)):
            trace = [look(index / 10, memory=memory(mb)) for index, mb in enumerate([140, 160, 180, 200, 220, 240])]
            *_, (_, decision) = replay([replace(one, expected_bytes=expected_mb * MB) for one in trace])
            assert decision.levels[MEMORY] is level

    def test_it_resumes_when_it_has_stopped_growing(self) -> None:
        """The rest, then two clear readings; a pause that looked ahead ends like any other."""
        levels = self.replay_mb([120, 140, 160, 180, 200, 220, 240, 220] + [200] * 20)
        assert levels.index(Level.PAUSE) == 6
        assert levels[6:17] == [Level.PAUSE] * 10 + [Level.OK]

    def test_it_never_ends_work_for_what_might_be(self) -> None:
        levels = self.replay_mb([30 * index for index in range(10)])
        assert levels[9] is Level.PAUSE
        assert Level.EVICT not in levels


@pytest.mark.parametrize(
    ("resource", "state", "reading", "reason"),
    [
        (
            MEMORY,
            State(),
            memory(260),
            "memory of this worker's processes 260 MB is over the soft limit 255 MB (85% of 300 MB)",
        ),
        (
            MEMORY,
            State(),
            Reading(value=1.34e9, limit=1.4e9, where="/sys/fs/cgroup/box"),
            "memory of control group /sys/fs/cgroup/box 1.34 GB is over the hard limit 1.33 GB (95% of 1.4 GB)",
        ),
        (
            MEMORY,
            at_level(MEMORY, Level.PAUSE),
            memory(240),
            "memory of this worker's processes 240 MB is not yet below 225 MB (75% of 300 MB)",
        ),
        (
            MEMORY,
            at_level(MEMORY, Level.PAUSE),
            memory(9),
            "memory of this worker's processes 9 MB is below 225 MB (75% of 300 MB), but seen only 1 of 2 times",
        ),
        (
            MEMORY,
            at_level(MEMORY, Level.PAUSE, clear=1),
            memory(9),
            "memory of this worker's processes 9 MB is below 225 MB (75% of 300 MB), but a pause lasts at least 1 s",
        ),
        (
            MEMORY,
            at_level(MEMORY, Level.PAUSE, since=-1, clear=1),
            memory(9),
            "memory of this worker's processes 9 MB is below 225 MB (75% of 300 MB)",
        ),
        (
            MEMORY_FREE,
            State(),
            free(300),
            "memory available on this machine 300 MB is below the 500 MB that must stay free",
        ),
        (
            MEMORY_FREE,
            at_level(MEMORY_FREE, Level.PAUSE),
            free(520),
            "memory available on this machine 520 MB is not yet over 625 MB",
        ),
        (
            MEMORY_FREE,
            at_level(MEMORY_FREE, Level.PAUSE, since=-1, clear=1),
            free(4250),
            "memory available on this machine 4.25 GB is over 625 MB",
        ),
        (
            CPU,
            State(tracks={CPU: Track(over=(1, 1, 1))}),
            cpu(1.1),
            "CPU used by this worker's processes 66% is over the hard limit 60%",
        ),
        (
            CPU,
            State(tracks={CPU: Track(over=(1, 0, 0))}),
            cpu(0.95),
            "CPU used by this worker's processes 57% is over the soft limit 54% (90% of 60%)",
        ),
    ],
)
def test_every_reason_has_the_reading_and_the_limit(
    resource: Resource, state: State, reading: Reading, reason: str
) -> None:
    """A log line must be enough to see why, without looking anything up."""
    decision = decide(LIMITS, state, look(0.0, **{resource: reading}))[1]
    said = [*decision.reasons.values(), *(change.reason for change in decision.changes)]
    assert set(said) == {reason}


def test_growth_is_a_reason_too() -> None:
    trace = [look(index / 10, memory=memory(value)) for index, value in enumerate([160, 180, 200, 220, 240])]
    *_, (_, decision) = replay(trace)
    assert decision.reasons[MEMORY] == (
        "memory of this worker's processes 240 MB grows by 200 MB/s: within 0.3 s it would be over the hard limit "
        "285 MB (95% of 300 MB)"
    )


@pytest.mark.parametrize(
    ("resource", "reading", "said"),
    [
        (Resource.DISK_FREE, Reading(value=1e9, limit=2e9, floor=True, where="/h"), "free space on /h 1 GB is below"),
        (
            Resource.DISK_FREE,
            Reading(value=9, limit=20, floor=True, where="/h", unit="inodes"),
            "free space on /h 9 inodes is below the 20 inodes that must stay free",
        ),
        (Resource.DISK_QUOTA, Reading(value=2e9, limit=1e9, where="/h"), "data that AgentLink keeps in /h 2 GB is"),
        (Resource.BROKER_MEMORY, Reading(value=2e9, limit=1e9), "memory of the broker's data 2 GB is over"),
        (Resource.PROCESSES, Reading(value=99, limit=90), "processes of this worker 99 is over the hard limit 86 (95%"),
        (
            Resource.PROCESSES,
            Reading(value=99, limit=90, where="/c", unit="threads"),
            "processes in control group /c 99 threads is over the hard limit 86 threads (95% of 90 threads)",
        ),
    ],
)  # fmt: skip
def test_each_resource_is_called_by_its_name(resource: Resource, reading: Reading, said: str) -> None:
    decision = decide(Limits(memory_bytes=1), State(), look(0.0, **{resource: reading}))[1]
    assert decision.reasons[resource].startswith(said)
