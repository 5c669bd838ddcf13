"""Where runs and their steps are kept: the only file that knows the keys.

A run is a hash, its steps a hash beside it (step id → `STATE {json}`), both with a TTL; one sorted set lists runs by
the time they were called. Everything is written as broker commands that ride along with something else: the message
that starts the run, or the result that ends a step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from kombu.utils.json import loads

from agentlink.broker.streams import RUN_PREFIX
from agentlink.settings import load
from workflows.errors import ResumeRefused, RunUnknown
from workflows.shape import Node, parse
from workflows.states import (
    TERMINAL_RUN_STATES,
    TERMINAL_STEP_STATES,
    RunState,
    StepState,
)

#: All runs, by the time they were called. The one key here without a TTL: it is trimmed with each new run.
INDEX_KEY = "agentlink:runs"
#: What workers are to do for runs, by when (seconds since 1970): a word and a run's id each.
ERRANDS_KEY = "agentlink:errands"

#: The message headers that tell a step its place in the canvas, and how often its run has been resumed; Celery carries
#: them along to the request.
PLACE_HEADER = "agentlink_place"
REPLAY_HEADER = "agentlink_replay"
#: That of a step whose failure does not end its run.
TOLERATED_HEADER = "agentlink_tolerated"
#: The one that tells the id of the step that has replaced itself by a canvas, to the tasks of that.
STANDS_FOR_HEADER = "agentlink_stands_for"
#: That of a task that is called since its run has ended: it begins all the same.
TELLS_END_HEADER = "agentlink_tells_end"
#: The field of a run with the message that goes out should it fail: see `workflows.errbacks`.
ERRBACKS_FIELD = "errbacks"
#: The one with the run that undoes its completed steps, or has.
UNDONE_FIELD = "undone_by"


#: What of a run's hash is its record; it also has its call, which may be large, and its graphs.
_RUN_FIELDS = (
    *("workflow", "arguments", "state", "called_at", "started_at", "ended_at", "steps_total", "steps_done"),
    *("parent_id", "failure", "root_id", "agent", "tags"),
)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What is known of a run. Times are seconds since 1970."""

    id: str
    workflow: str
    arguments: str
    state: RunState
    called_at: float
    started_at: float | None
    ended_at: float | None
    steps_total: int
    steps_done: int
    parent_id: str | None
    failure: Mapping[str, Any] | None
    root_id: str
    #: The agent in whose name it was called, and what its caller has marked it with.
    agent: str | None
    tags: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What is known of a step. Times are seconds since 1970."""

    id: str
    name: str
    place: str
    state: StepState
    attempt: int = 0
    #: How many tasks have replaced themselves, one by the next, until it came to this one.
    replacements: int = 0
    #: The step that has replaced itself by a canvas of which this one is a part: it fails with it.
    stands_for: str | None = None
    worker: str | None = None
    started_at: float | None = None
    ended_at: float | None = None
    error: str | None = None
    #: What its last attempt took: memory beyond what its process had before, and CPU time. Not every run of a task that
    #: is known to be short is measured.
    peak_bytes: int | None = None
    cpu_s: float | None = None
    #: What it has last told of its own progress, from 0 to 1, and with it: only where `WorkflowRun.steps()` is asked.
    progress: float | None = None
    message: str | None = None
    #: The signal it waits for, where it has begun to.
    waiting_for: str | None = None

    @property
    def numbers(self) -> tuple[int, ...]:
        """Its place in numbers; empty for what nothing has planned."""
        return tuple(map(int, self.place.split("."))) if self.place else ()


def run_key(run_id: str) -> str:
    """The key of a run's hash."""
    return RUN_PREFIX + run_id


def goes_on_ttl_s() -> int:
    """How long a run that goes on is kept: it must not vanish in days, so this only bounds what never ends."""
    return int(2 * load().keep_results_s)


def steps_key(run_id: str) -> str:
    """The key of a run's steps."""
    return f"{run_key(run_id)}:steps"


def below_key(run_id: str) -> str:
    """The key of the runs that a run's steps are or have started."""
    return f"{run_key(run_id)}:below"


def read_run(client: redis.Redis, run_id: str) -> RunRecord:
    """One run.

    Raises:
        RunUnknown: it never was, or it ended longer ago than results are kept.
    """
    fields = client.hmget(run_key(run_id), _RUN_FIELDS)
    if fields[0] is None:
        raise RunUnknown(run_id)
    return _decode_run(run_id, fields)


@dataclass(frozen=True, kw_only=True)
class RunCall:
    """The call that has begun a run, with which it is built again; `replay` tells for the so many-th time."""

    workflow: str
    args: list[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    replay: int


def read_call(client: redis.Redis, run_id: str) -> RunCall:
    """The call that has begun a run.

    Raises:
        RunUnknown: it never was, or it ended longer ago than results are kept.
        ResumeRefused: a plain Celery client has called it, and its arguments are known to nobody any more.
    """
    workflow, call, replay = client.hmget(run_key(run_id), ["workflow", "call", "replay"])
    if workflow is None:
        raise RunUnknown(run_id)
    if call is None:
        raise ResumeRefused(run_id, "its arguments were not kept; it was not called by AgentLink")
    args, kwargs, options = loads(call)
    return RunCall(workflow=as_text(workflow), args=args, kwargs=kwargs, options=options, replay=int(replay or 0))


def read_overrides(client: redis.Redis, run_id: str) -> dict[str, tuple[list[Any], dict[str, Any]]]:
    """The arguments that steps were given as their run was resumed, by their ids."""
    fields = client.hgetall(run_key(run_id))
    prefix = "args:"
    return {
        name.removeprefix(prefix): tuple(loads(value))
        for name, value in ((as_text(name), value) for name, value in fields.items())
        if name.startswith(prefix)
    }


def read_graphs(client: redis.Redis, run_id: str) -> dict[str, Node]:
    """A run's graphs by the places of the steps that have built them: its own under the empty one."""
    prefix = graph_field()
    return {
        name.removeprefix(prefix): parse(as_text(value).partition(" ")[0])
        for name, value in ((as_text(name), value) for name, value in client.hgetall(run_key(run_id)).items())
        if name.startswith(prefix)
    }


def states_of(client: redis.Redis, run_ids: Sequence[str]) -> dict[str, RunState]:
    """Of these runs, those that are known, each with its state."""
    with client.pipeline(transaction=False) as pipe:
        for run_id in run_ids:
            pipe.hget(run_key(run_id), "state")
        states = pipe.execute()
    return {run_id: RunState(as_text(state)) for run_id, state in zip(run_ids, states, strict=True) if state}


def which_go_on(client: redis.Redis, run_ids: Sequence[str]) -> dict[str, bool]:
    """Of these runs, those that are known, and whether each has yet to end."""
    return {run_id: state not in TERMINAL_RUN_STATES for run_id, state in states_of(client, run_ids).items()}


def which_ended(client: redis.Redis, run_id: str, step_ids: Sequence[str]) -> set[str]:
    """Of these steps of a run, those that have ended."""
    records = client.hmget(steps_key(run_id), list(step_ids))
    states = {step: as_text(record).partition(" ")[0] for step, record in zip(step_ids, records, strict=True) if record}
    return {step for step, state in states.items() if state in TERMINAL_STEP_STATES}


def read_steps(client: redis.Redis, run_id: str) -> list[StepRecord]:
    """A run's steps in the order of their places in its canvas."""
    steps = [_decode_step(as_text(key), as_text(value)) for key, value in client.hgetall(steps_key(run_id)).items()]
    return sorted(steps, key=lambda step: step.numbers)


def changed_steps(client: redis.Redis, run_id: str, known: dict[str, bytes | str]) -> list[StepRecord]:
    """Of a run's steps those that are not as `known` has them, which is how the broker keeps them by their ids.

    It is brought up to date: of many steps, only what has changed is looked at.
    """
    found: dict[Any, Any] = client.hgetall(steps_key(run_id))
    changed = {as_text(step_id): value for step_id, value in found.items() if known.get(as_text(step_id)) != value}
    known.update(changed)
    return [_decode_step(step_id, as_text(value)) for step_id, value in changed.items()]


def steps_from(known: Mapping[str, bytes | str], step_ids: Iterable[str]) -> list[StepRecord]:
    """Those of these steps that are among what `changed_steps` has made known."""
    return [_decode_step(step_id, as_text(known[step_id])) for step_id in step_ids if step_id in known]


def read_step(client: redis.Redis, run_id: str, step_id: str) -> StepRecord | None:
    """One of a run's steps; None: it is none of them."""
    value = client.hget(steps_key(run_id), step_id)
    return None if value is None else _decode_step(step_id, as_text(value))


def latest_runs(client: redis.Redis, count: int, *, skip: int = 0, state: RunState | None = None) -> list[RunRecord]:
    """The runs called last, newest first: all, or those in one state; so many, after those that are skipped."""
    index = INDEX_KEY if state is None else f"{INDEX_KEY}:{state}"
    newest: list[bytes] = client.zrevrange(index, skip, skip + count - 1)  # type: ignore[assignment]  # no scores asked for
    return [run for run in read_runs(client, [as_text(run_id) for run_id in newest]) if state in (None, run.state)]


def read_runs(client: redis.Redis, run_ids: Sequence[str]) -> list[RunRecord]:
    """Those of these runs that are known, in the same order."""
    with client.pipeline(transaction=False) as pipe:
        for run_id in run_ids:
            pipe.hmget(run_key(run_id), _RUN_FIELDS)
        answers = pipe.execute()
    return [_decode_run(run_id, fields) for run_id, fields in zip(run_ids, answers, strict=True) if fields[0]]


def how_many_runs(client: redis.Redis, state: RunState | None = None) -> int:
    """How many runs are listed, in all or in one state."""
    return int(client.zcard(INDEX_KEY if state is None else f"{INDEX_KEY}:{state}"))


def run_ids(client: redis.Redis, prefix: str) -> list[str]:
    """The ids of the listed runs that begin so."""
    ids: list[bytes] = client.zrange(INDEX_KEY, 0, -1)  # type: ignore[assignment]  # no scores asked for
    return [run_id for run_id in map(as_text, ids) if run_id.startswith(prefix)]


def count_runs(client: redis.Redis) -> dict[RunState, int]:
    """How many runs there are in each state."""
    with client.pipeline(transaction=False) as pipe:
        for state in RunState:
            pipe.zcard(f"{INDEX_KEY}:{state}")
        return dict(zip(RunState, pipe.execute(), strict=True))


def graph_field(within: str = "") -> str:
    """The field of a run that holds the graph of a canvas: its own, or that which a step has replaced itself by."""
    return f"graph:{within}"


def _decode_step(step_id: str, value: str) -> StepRecord:
    state, _, facts = value.partition(" ")
    return StepRecord(id=step_id, state=StepState(state), **({"name": "", "place": ""} | json.loads(facts)))


def _decode_run(run_id: str, values: Sequence[Any]) -> RunRecord:
    fields = {name: as_text(value) for name, value in zip(_RUN_FIELDS, values, strict=True) if value is not None}
    return RunRecord(
        id=run_id,
        workflow=fields["workflow"],
        arguments=fields["arguments"],
        state=RunState(fields["state"]),
        called_at=float(fields["called_at"]),
        started_at=float(fields["started_at"]) if "started_at" in fields else None,
        ended_at=float(fields["ended_at"]) if "ended_at" in fields else None,
        steps_total=int(fields["steps_total"]),
        steps_done=int(fields["steps_done"]),
        parent_id=fields["parent_id"] or None,
        failure=json.loads(fields["failure"]) if "failure" in fields else None,
        root_id=fields["root_id"],
        agent=fields.get("agent"),
        tags=tuple(json.loads(fields.get("tags", "[]"))),
    )


def as_text(value: str | bytes) -> str:
    """What the broker has said, as text."""
    return value.decode() if isinstance(value, bytes) else value
