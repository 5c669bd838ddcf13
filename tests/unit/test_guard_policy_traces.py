"""What must hold of levels whatever happens, on made-up traces."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from resource_guard.limits import Limits, Marks
from resource_guard.observation import Level, Observation
from resource_guard.policy import State, decide
from tests.unit.test_guard_policy import MB, MEMORY, look, memory, replay

# Seconds between looks (with gaps, as after a suspend), and memory in the shapes that workloads have.
# None is a look at which memory could not be read.

STEPS_S = st.one_of(st.just(0.1), st.floats(0.01, 0.5), st.floats(1, 3600))
STEADY = st.floats(0, 400).map(lambda level_mb: [level_mb] * 60)
SAW_TOOTH = st.integers(2, 40).map(lambda period: [100 + 220 * (i % period) / period for i in range(100)])
LEAK = st.floats(0.1, 10).map(lambda slope_mb: [100 + slope_mb * i for i in range(100)])
BURST = st.tuples(st.integers(0, 80), st.integers(1, 20)).map(
    lambda burst: [900.0 if burst[0] <= i < sum(burst) else 50.0 for i in range(100)]
)
FLAPPING = st.lists(st.sampled_from([254.9, 255.0, 225.0, 224.9, 284.9, 285.0]), min_size=50)
GAPS = st.lists(st.one_of(st.none(), st.floats(0, 400)), min_size=1, max_size=100)
MARKS = st.builds(
    Marks,
    pause=st.just(0.85),
    resume=st.sampled_from([0.3, 0.75, 0.84]),
    throttle=st.sampled_from([None, 0.845]),
    evict=st.sampled_from([None, 0.85, 0.95]),
    readings_on=st.integers(1, 3),
    readings_off=st.integers(1, 4),
    rest_s=st.sampled_from([0.0, 0.5, 1.0, 30.0]),
)


@st.composite
def traces(draw: st.DrawFn) -> list[Observation]:
    at, trace = 0.0, []
    for value_mb in draw(st.one_of(STEADY, SAW_TOOTH, LEAK, BURST, FLAPPING, GAPS)):
        at += draw(STEPS_S)
        trace.append(look(at, memory=None if value_mb is None else memory(value_mb)))
    return trace


def final_state(trace: list[Observation], limits: Limits) -> State:
    state = State()
    for seen in trace:
        state, _ = decide(limits, state, seen)
    return state


def limits_with(marks: Marks) -> Limits:
    return Limits(memory_bytes=300 * MB, marks={MEMORY: marks})


@settings(deadline=None)
@given(traces(), MARKS)
def test_it_never_evicts_below_the_hard_mark_nor_without_a_reading(trace: list[Observation], marks: Marks) -> None:
    """Whatever was before, and however fast it grows: the reading itself is what ends work."""
    for seen, decision in replay(trace, limits_with(marks)):
        if decision.level is Level.EVICT:
            assert marks.evict is not None
            assert seen.readings[MEMORY].fraction >= marks.evict


@settings(deadline=None)
@given(traces(), MARKS)
def test_enough_readings_over_a_mark_leave_no_lower_level(trace: list[Observation], marks: Marks) -> None:
    """Not even for one look more."""
    over = 0
    for seen, decision in replay(trace, limits_with(marks)):
        reading = seen.readings.get(MEMORY)
        if reading is not None:
            over = over + 1 if reading.fraction >= 0.85 else 0
        if over >= marks.readings_on:
            assert decision.level >= Level.PAUSE


@settings(deadline=None)
@given(traces(), MARKS)
def test_each_pause_lasts_its_rest(trace: list[Observation], marks: Marks) -> None:
    """So there is at most one pause in `rest_s`, whatever the readings do."""
    paused_at = None
    for seen, decision in replay(trace, limits_with(marks)):
        if decision.level >= Level.PAUSE:
            paused_at = seen.at if paused_at is None else paused_at
        elif paused_at is not None:
            assert seen.at >= paused_at + marks.rest_s
            paused_at = None


@settings(deadline=None)
@given(traces(), MARKS)
def test_it_is_well_once_it_has_been_clear_for_long_enough(trace: list[Observation], marks: Marks) -> None:
    """No history leaves a worker paused for good: after the rest, as many clear readings as it asks for are enough."""
    limits = limits_with(marks)
    state, decision = final_state(trace, limits), None
    for index in range(marks.readings_off):
        state, decision = decide(limits, state, look(trace[-1].at + 40 + index, memory=memory(10)))
    assert decision is not None
    assert decision.level is Level.OK
    assert decision.reasons == {}


@settings(deadline=None)
@given(traces(), MARKS, st.floats(0, 400), st.floats(0, 400))
def test_more_is_never_better(trace: list[Observation], marks: Marks, one_mb: float, other_mb: float) -> None:
    """After the same past, the higher of two readings gives the same level or a worse one."""
    limits = limits_with(marks)
    state, at = final_state(trace, limits), trace[-1].at + 0.1
    lower, higher = (
        decide(limits, state, look(at, memory=memory(value)))[1].level for value in sorted([one_mb, other_mb])
    )
    assert lower <= higher


@settings(deadline=None)
@given(traces(), MARKS)
def test_changes_are_what_has_changed(trace: list[Observation], marks: Marks) -> None:
    """Put together they give the levels: who only listens to changes knows all."""
    level = Level.OK
    for _, decision in replay(trace, limits_with(marks)):
        for change in decision.changes:
            assert change.before is level
            assert change.after is not level
            assert change.reason
            level = change.after
        assert decision.levels == {MEMORY: level}
        assert set(decision.reasons) == ({MEMORY} if level else set())


def test_the_traces_do_pause_and_resume() -> None:
    """The properties above would hold for a guard that does nothing; a saw-tooth through all marks is met by turns."""
    saw_tooth = [look(i / 10, memory=memory(100 + 220 * (i % 20) / 20)) for i in range(100)]
    turns = [change.after for _, decision in replay(saw_tooth) for change in decision.changes]
    assert turns == [Level.PAUSE, Level.EVICT, Level.PAUSE, Level.OK] * 4 + [Level.PAUSE, Level.EVICT]
