"""The states of runs and steps."""

from __future__ import annotations

from workflows.states import (
    RUN_STATE_OF_CELERY,
    RUN_TRANSITIONS,
    STEP_STATE_OF_CELERY,
    STEP_TRANSITIONS,
    TERMINAL_RUN_STATES,
    TERMINAL_STEP_STATES,
    RunState,
    StepState,
)


def test_every_state_has_its_row_in_the_table() -> None:
    assert set(RUN_TRANSITIONS) == set(RunState)
    assert set(STEP_TRANSITIONS) == set(StepState)


def test_terminal_states_are_those_nothing_follows() -> None:
    assert {RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED} == TERMINAL_RUN_STATES
    assert {StepState.SUCCEEDED, StepState.FAILED, StepState.CANCELLED} == TERMINAL_STEP_STATES


def test_every_state_can_be_reached_and_every_live_one_left_for_good() -> None:
    for table, terminal, first in (
        (RUN_TRANSITIONS, TERMINAL_RUN_STATES, RunState.QUEUED),
        (STEP_TRANSITIONS, TERMINAL_STEP_STATES, StepState.WAITING),
    ):
        reached = {first} | {after for followers in table.values() for after in followers}
        assert reached == set(table)
        assert all(followers >= terminal for state, followers in table.items() if state not in terminal)


def test_celerys_states_map_to_ours() -> None:
    """PENDING is Celery's word for "never heard of": it says nothing."""
    from celery import states

    recorded = states.ALL_STATES - {states.PENDING, states.RECEIVED, states.REJECTED, states.IGNORED}
    assert set(STEP_STATE_OF_CELERY) == recorded
    assert set(RUN_STATE_OF_CELERY) == recorded - {states.RETRY}
