"""How far a run has come: what its steps have told, weighed by how long such steps have taken before."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean

import redis

from agentlink.broker.streams import told_key
from workflows.states import TERMINAL_RUN_STATES, TERMINAL_STEP_STATES, RunState
from workflows.store import RunRecord, StepRecord, as_text

# A run that has not succeeded is never shown as done.
_ALMOST = 0.999
# Even what takes no time at all is a step.
_WEIGHT_MIN_S = 0.001


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run has come."""

    state: RunState
    steps_done: int
    steps_total: int  #: 0 until a worker has built the canvas
    #: Between 0 and 1: the share of the work that is done, by how long such steps have taken before; 1 means success.
    fraction: float
    #: The time left, in seconds, by how long the workflow's earlier runs have taken; None: it has never succeeded yet.
    left_s: float | None
    #: What a step has last said with its progress.
    message: str | None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in TERMINAL_RUN_STATES


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What a step has told of its progress. `at` is in seconds since 1970."""

    fraction: float
    #: The most that any of its attempts has come to.
    top: float
    message: str | None
    at: float


def read_told(client: redis.Redis, run_id: str) -> dict[str, Told]:
    """What a run's steps have told of their progress, by their ids."""
    told: dict[str, Told] = {}
    for key, value in client.hgetall(told_key(run_id)).items():
        step_id, _, _ = as_text(key).partition("/")
        facts = {} if step_id.startswith("#") else json.loads(value)
        if "fraction" not in facts or (step_id in told and told[step_id].at > facts["at"]):
            continue
        told[step_id] = Told(
            fraction=facts["fraction"], top=facts["top"], message=facts["message"] or None, at=facts["at"]
        )
    return told


def with_told(steps: Iterable[StepRecord], told: Mapping[str, Told]) -> list[StepRecord]:
    """The steps, with the progress that they have told."""
    return [
        replace(step, progress=told[step.id].fraction, message=told[step.id].message) if step.id in told else step
        for step in steps
    ]


def progress_of(
    run: RunRecord,
    steps: Iterable[StepRecord],
    told: Mapping[str, Told],
    expected_s: Mapping[str, float],
    seen: float = 0.0,
) -> Progress:
    """A run's progress. `expected_s` are seconds that tasks, and the workflow, have taken before, by their names.

    So much as has been `seen` done stays done, whatever steps are added.
    """
    done = max(seen, _fraction_done(list(steps), told, expected_s))
    fraction = 1.0 if run.state is RunState.SUCCEEDED else min(_ALMOST, done)
    earlier_s = expected_s.get(run.workflow)
    left_s = 0.0 if run.state in TERMINAL_RUN_STATES else None if earlier_s is None else earlier_s * (1 - fraction)
    messages = [(one.at, one.message) for one in told.values() if one.message]
    return Progress(
        state=run.state,
        steps_done=run.steps_done,
        steps_total=run.steps_total,
        fraction=fraction,
        left_s=left_s,
        message=max(messages)[1] if messages else None,
    )


def _fraction_done(steps: list[StepRecord], told: Mapping[str, Told], expected_s: Mapping[str, float]) -> float:
    """A step weighs the seconds it is expected to take; where that is not known, as much as others do on average."""
    known = [max(expected_s[step.name], _WEIGHT_MIN_S) for step in steps if step.name in expected_s]
    unknown_s = fmean(known) if known else 1.0
    done_s = total_s = 0.0
    for step in steps:
        weight_s = max(expected_s.get(step.name, unknown_s), _WEIGHT_MIN_S)
        total_s += weight_s
        if step.state in TERMINAL_STEP_STATES:
            done_s += weight_s
        elif step.id in told:  # one that begins again has not undone what the whole was seen to have come to
            done_s += weight_s * told[step.id].top
    return done_s / total_s if total_s else 0.0
