"""Where runs and their steps are kept: the only file that knows the keys.

A run is a hash, its steps a hash beside it (step id → `STATE {json}`), both with a TTL; one sorted set lists runs by
the time they were called. Everything is written as broker commands that ride along with something else: the message
that starts the run, or the result that ends a step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

import redis

from agentlink.broker.transport import Command
from agentlink.settings import load
from tasks.app import app
from workflows.errors import RunUnknown
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

#: All runs, by the time they were called. The one key here without a TTL: it is trimmed with each new run.
INDEX_KEY = "agentlink:runs"

#: The message header that tells a step its place in the canvas; Celery carries it along to the task's request.
PLACE_HEADER = "agentlink_place"

_TRANSITION = resources.files(__package__).joinpath("transition.lua").read_text()
_ARGUMENTS_MAX_CHARS = 2_000
_ERROR_MAX_CHARS = 20_000


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


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What is known of a step. Times are seconds since 1970."""

    id: str
    name: str
    place: str
    state: StepState
    attempt: int = 0
    worker: str | None = None
    started_at: float | None = None
    ended_at: float | None = None
    error: str | None = None


def run_key(run_id: str) -> str:
    """The key of a run's hash."""
    return f"agentlink:run:{run_id}"


def steps_key(run_id: str) -> str:
    """The key of a run's steps."""
    return f"{run_key(run_id)}:steps"


def creation_commands(run_id: str, workflow: str, arguments: str, parent_id: str | None) -> list[Command]:
    """What records a new run; it goes to the broker together with the message that starts it."""
    settings, now = load(), time.time()
    # A run that goes on for days must not vanish: this TTL only bounds what never ends, `end_run` sets the real one.
    ttl_s = int(2 * settings.keep_results_s)
    fields = {
        "workflow": workflow,
        "arguments": arguments[:_ARGUMENTS_MAX_CHARS],
        "state": RunState.QUEUED,
        "called_at": f"{now:.6f}",
        "steps_total": 0,
        "steps_done": 0,
        "parent_id": parent_id or "",
    }
    return [
        ["HSET", run_key(run_id), *(part for pair in fields.items() for part in pair)],
        ["EXPIRE", run_key(run_id), ttl_s],
        ["ZADD", INDEX_KEY, f"{now:.6f}", run_id],
        ["ZREMRANGEBYSCORE", INDEX_KEY, "-inf", f"{now - ttl_s:.6f}"],
        ["ZREMRANGEBYRANK", INDEX_KEY, 0, -settings.keep_runs - 1],
    ]


def record_plan(client: redis.Redis, run_id: str, steps: Iterable[StepRecord]) -> None:
    """Record the steps a run will have. Done twice (its worker died meanwhile), it changes nothing."""
    key, total = steps_key(run_id), 0
    with client.pipeline() as pipe:
        for step in steps:
            pipe.hsetnx(key, step.id, _encode_step(step))
            total += 1
        pipe.hset(run_key(run_id), "steps_total", total)
        pipe.expire(key, int(2 * load().keep_results_s))
        pipe.execute()


def transition_commands(
    task_id: str, celery_state: str, result: Any, traceback: str | None, request: Any
) -> Iterator[Command]:
    """What records a task's change of state; it goes to the broker together with Celery's own result.

    `request` is the task's request, or None or a made-up one where Celery fails a task from outside (the body of a
    failed chord).
    """
    task_name = getattr(request, "task", None)  # Celery's made-up requests have none
    builds_canvas = getattr(app.tasks.get(task_name), "builds_canvas", False)
    step_state = STEP_STATE_OF_CELERY.get(celery_state) if task_name and not builds_canvas else None
    # A run's last step has the run's id: that it has started says nothing new of the run.
    run_state = RUN_STATE_OF_CELERY.get(celery_state) if builds_canvas or celery_state != "STARTED" else None
    run_id = getattr(request, "root_id", None) or task_id
    lone_task = task_name and not builds_canvas and run_id == task_id and _place(request) is None
    if lone_task or (step_state is None and run_state is None):
        return
    now = time.time()
    failed = celery_state in ("FAILURE", "REVOKED")
    step = _step_after(task_id, step_state, result, request, now) if step_state else None
    yield [
        "EVAL",
        _TRANSITION,
        3,
        run_key(run_id),
        steps_key(run_id),
        run_key(task_id),
        task_id if step else "",
        step_state or "",
        _step_json(step) if step else "",
        _origins(STEP_TRANSITIONS, step_state),
        int(step_state in TERMINAL_STEP_STATES),
        run_state or "",
        _origins(RUN_TRANSITIONS, run_state),
        int(run_state in TERMINAL_RUN_STATES),
        f"{now:.6f}",
        _failure_json(task_id, result, traceback, request) if failed else "",
        int(load().keep_results_s),
    ]


def read_run(client: redis.Redis, run_id: str) -> RunRecord:
    """One run.

    Raises:
        RunUnknown: it never was, or it ended longer ago than results are kept.
    """
    fields = client.hgetall(run_key(run_id))
    if not fields:
        raise RunUnknown(run_id)
    return _decode_run(run_id, fields)


def read_steps(client: redis.Redis, run_id: str) -> list[StepRecord]:
    """A run's steps in the order of their places in its canvas."""
    steps = [_decode_step(_text(key), _text(value)) for key, value in client.hgetall(steps_key(run_id)).items()]
    return sorted(steps, key=lambda step: [int(part) for part in step.place.split(".") if part.isdigit()])


def latest_runs(client: redis.Redis, count: int) -> list[RunRecord]:
    """The runs called last, newest first."""
    newest: list[bytes] = client.zrevrange(INDEX_KEY, 0, count - 1)  # type: ignore[assignment]  # no scores asked for
    run_ids = [_text(run_id) for run_id in newest]
    with client.pipeline() as pipe:
        for run_id in run_ids:
            pipe.hgetall(run_key(run_id))
        answers = pipe.execute()
    return [_decode_run(run_id, fields) for run_id, fields in zip(run_ids, answers, strict=True) if fields]


def _origins(table: Mapping[Any, frozenset[Any]], state: RunState | StepState | None) -> str:
    return json.dumps([before for before, after in table.items() if state in after])


def _step_after(task_id: str, state: StepState, result: Any, request: Any, now: float) -> StepRecord:
    started_at = now if state is StepState.RUNNING else getattr(request, "agentlink_started_at", None)
    request.agentlink_started_at = started_at
    return StepRecord(
        id=task_id,
        name=request.task or "",
        place=_place(request) or "",
        state=state,
        attempt=(request.retries or 0) + 1,
        worker=request.hostname,
        started_at=started_at,
        ended_at=now if state in TERMINAL_STEP_STATES else None,
        error=_error_text(result) if state in (StepState.FAILED, StepState.RETRYING) else None,
    )


def _place(request: Any) -> str | None:
    place: str | None = getattr(request, PLACE_HEADER, None)
    return place


def _error_text(result: Any) -> str:
    if not isinstance(result, dict):
        return str(result)[:_ERROR_MAX_CHARS]
    message = result.get("exc_message")
    words = ", ".join(map(str, message)) if isinstance(message, (list, tuple)) else str(message)
    return f"{result.get('exc_type')}: {words}"[:_ERROR_MAX_CHARS]


def _failure_json(task_id: str, result: Any, traceback: str | None, request: Any) -> str:
    return json.dumps(
        {
            "step_id": task_id,
            "step": getattr(request, "task", None),
            "error": _error_text(result),
            "traceback": (traceback or "")[-_ERROR_MAX_CHARS:],
        }
    )


def _step_json(step: StepRecord) -> str:
    return json.dumps({name: value for name, value in asdict(step).items() if name not in ("id", "state") and value})


def _encode_step(step: StepRecord) -> str:
    return f"{step.state} {_step_json(step)}"


def _decode_step(step_id: str, value: str) -> StepRecord:
    state, _, facts = value.partition(" ")
    return StepRecord(id=step_id, state=StepState(state), **({"name": "", "place": ""} | json.loads(facts)))


def _decode_run(run_id: str, raw: Mapping[Any, Any]) -> RunRecord:
    fields = {_text(name): _text(value) for name, value in raw.items()}
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
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
