"""When the guard pauses and resumes: tables for the rule, made-up traces for what must hold whatever happens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resource_guard import Action, Decision, Limits, Observation, Pressure, State, decide

MB = 1_000_000
LIMITS = Limits(
    memory_bytes=300 * MB, soft_fraction=0.85, resume_fraction=0.75, free_bytes=500 * MB, rest_s=1.0
)  # soft 255 MB, resume 225 MB, comfortable 550 MB


def look(tree_mb: float, available_mb: float = 4000, at: float = 0.0) -> Observation:
    return Observation(at=at, tree_bytes=int(tree_mb * MB), available_bytes=int(available_mb * MB))


@pytest.mark.parametrize(
    ("tree_mb", "available_mb", "pressure", "action"),
    [
        (100, 4000, Pressure.OK, Action.NONE),
        (254.9, 4000, Pressure.OK, Action.NONE),
        (255, 4000, Pressure.SOFT, Action.PAUSE),
        (299.9, 4000, Pressure.SOFT, Action.PAUSE),
        (300, 4000, Pressure.HARD, Action.PAUSE),
        (100, 500, Pressure.OK, Action.NONE),
        (100, 499.9, Pressure.SOFT, Action.PAUSE),
        (300, 100, Pressure.HARD, Action.PAUSE),
    ],
)
def test_an_open_worker_pauses_at_its_soft_limit_or_when_the_machine_runs_short(
    tree_mb: float, available_mb: float, pressure: Pressure, action: Action
) -> None:
    """Either is enough; at the mark itself it pauses."""
    state, decision = decide(LIMITS, State(), look(tree_mb, available_mb, at=7.0))
    assert (decision.pressure, decision.action) == (pressure, action)
    assert state == State(paused_at=7.0 if action is Action.PAUSE else None)


@pytest.mark.parametrize(
    ("tree_mb", "available_mb", "paused_s", "resumes"),
    [
        (224.9, 4000, 1.0, True),
        (224.9, 550, 1.0, True),
        (224.9, 4000, 0.9, False),  # it has to rest
        (225, 4000, 60.0, False),  # below soft is not enough
        (100, 549.9, 60.0, False),  # neither is just what must stay free
        (300, 4000, 60.0, False),
    ],
)
def test_a_paused_worker_resumes_only_well_below_the_limit_and_after_a_rest(
    tree_mb: float, available_mb: float, paused_s: float, resumes: bool
) -> None:
    """All three conditions must hold, so a reading that trembles around one mark changes nothing."""
    state, decision = decide(LIMITS, State(paused_at=10.0), look(tree_mb, available_mb, at=10.0 + paused_s))
    assert (decision.action is Action.RESUME) == resumes
    assert (state.paused_at is None) == resumes


@pytest.mark.parametrize(
    ("state", "seen", "reason"),
    [
        (State(), look(310), "memory of this worker's processes 310 MB is over the soft limit 255 MB (85% of 300 MB)"),
        (State(), look(9, 300), "memory available on this machine 300 MB is below the 500 MB that must stay free"),
        (
            State(paused_at=0.0),
            look(240),
            "memory of this worker's processes 240 MB is not yet below 225 MB (75% of 300 MB)",
        ),
        (State(paused_at=0.0), look(9, 520), "memory available on this machine 520 MB is not yet over 550 MB"),
        (State(paused_at=0.0), look(9), "memory is free again, but a pause lasts at least 1 s"),
        (
            State(paused_at=0.0),
            look(9, 4250, at=2.0),
            (
                "memory of this worker's processes 9 MB is below 225 MB (75% of 300 MB), "
                "memory available on this machine 4.25 GB"
            ),
        ),
        (State(), look(9), ""),
    ],
)
def test_every_reason_has_the_reading_and_the_limit(state: State, seen: Observation, reason: str) -> None:
    """A log line must be enough to see why, without looking anything up."""
    assert decide(LIMITS, state, seen)[1].reason == reason


def test_without_a_floor_for_the_machine_only_the_workers_own_memory_counts() -> None:
    """`free_bytes=0` turns the machine's side off."""
    limits = Limits(memory_bytes=300 * MB)
    assert decide(limits, State(), look(100, 0))[1].action is Action.NONE
    assert decide(limits, State(paused_at=0.0), look(100, 0, at=2.0))[1].action is Action.RESUME


def test_a_floor_the_machine_can_never_reach_pauses_once_and_stays() -> None:
    """More memory demanded than there is: the worker stays paused, it does not flap."""
    actions = [decision.action for _, decision in replay([look(100, 499, at=t / 10) for t in range(1000)])]
    assert actions == [Action.PAUSE] + [Action.NONE] * 999


# -- Traces: seconds between looks (with gaps, as after a suspend) and memory in the shapes that workloads have.

STEPS_S = st.one_of(st.just(0.1), st.floats(0.01, 0.5), st.floats(1, 3600))
SAW_TOOTH = st.integers(2, 40).map(lambda period: [(100 + 220 * (i % period) / period, 4000.0) for i in range(100)])
LEAK = st.floats(0.1, 10).map(lambda slope_mb: [(100 + slope_mb * i, 4000.0 - slope_mb * i) for i in range(100)])
BURST = st.tuples(st.integers(0, 80), st.integers(1, 20)).map(
    lambda burst: [(900.0 if burst[0] <= i < sum(burst) else 50.0, 4000.0) for i in range(100)]
)
FLAPPING = st.lists(st.sampled_from([(254.9, 501.0), (255.0, 499.0), (225.0, 550.0), (224.9, 549.0)]), min_size=50)
ANYTHING = st.lists(st.tuples(st.floats(0, 900), st.floats(0, 4000)), min_size=1, max_size=100)


@st.composite
def traces(draw: st.DrawFn) -> list[Observation]:
    at, trace = 0.0, []
    for tree_mb, available_mb in draw(st.one_of(SAW_TOOTH, LEAK, BURST, FLAPPING, ANYTHING)):
        at += draw(STEPS_S)
        trace.append(look(tree_mb, max(0.0, available_mb), at=at))
    return trace


def replay(trace: list[Observation], state: State | None = None) -> Iterator[tuple[Observation, Decision]]:
    state = state or State()
    for seen in trace:
        state, decision = decide(LIMITS, state, seen)
        yield seen, decision


def final_state(trace: list[Observation]) -> State:
    state = State()
    for seen in trace:
        state, _ = decide(LIMITS, state, seen)
    return state


@settings(deadline=None)
@given(traces())
def test_it_never_pauses_without_pressure_and_never_stays_open_under_it(trace: list[Observation]) -> None:
    """Pausing needs a reading over a mark, and such a reading leaves no worker open, not even for one look."""
    paused = False
    for seen, decision in replay(trace):
        over = seen.tree_bytes >= LIMITS.soft_bytes or seen.available_bytes < LIMITS.free_bytes
        if decision.action is Action.PAUSE:
            assert over
        paused = decision.action is Action.PAUSE or (paused and decision.action is not Action.RESUME)
        assert paused or not over


@settings(deadline=None)
@given(traces())
def test_pauses_and_resumes_alternate_and_each_pause_lasts_its_rest(trace: list[Observation]) -> None:
    """So there is at most one pause in `rest_s`, whatever the readings do."""
    turns = [(seen.at, decision.action) for seen, decision in replay(trace) if decision.action is not Action.NONE]
    assert [action for _, action in turns] == [Action.PAUSE, Action.RESUME] * (len(turns) // 2) + [Action.PAUSE] * (
        len(turns) % 2
    )
    for (paused_at, _), (resumed_at, _) in zip(turns[::2], turns[1::2], strict=False):
        assert resumed_at >= paused_at + LIMITS.rest_s


@settings(deadline=None)
@given(traces())
def test_it_resumes_once_pressure_has_been_gone_for_the_rest(trace: list[Observation]) -> None:
    """No history leaves a worker paused for good."""
    calm_at = trace[-1].at + LIMITS.rest_s
    state, decision = decide(LIMITS, final_state(trace), look(100, at=calm_at))
    assert state == State()
    assert decision.pressure is Pressure.OK


def test_the_traces_do_pause_and_resume() -> None:
    """The properties above would hold for a guard that does nothing; a saw-tooth through both marks is met by turns."""
    saw_tooth = [look(100 + 220 * (i % 20) / 20, at=i / 10) for i in range(100)]
    turns = [decision.action for _, decision in replay(saw_tooth) if decision.action is not Action.NONE]
    assert turns == [Action.PAUSE, Action.RESUME] * 4 + [Action.PAUSE]
