"""Where runs and their steps are kept: the only file that knows the keys.

A run is a hash, its steps a hash beside it (step id → `STATE {json}`), both with a TTL; one sorted set lists runs by
the time they were called. Everything is written as broker commands that ride along with something else: the message
that starts the run, or the result that ends a step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import redis

from agentlink.broker import fanout
from agentlink.broker.calls import DELIVERIES_HEADER, Command
from agentlink.broker.dead_letters import DeadLetter
from agentlink.broker.fanout import COUNTING, TREE_PREFIX
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

#: The message headers that tell a step its place in the canvas and its run; Celery carries them along to the request.
PLACE_HEADER = "agentlink_place"
RUN_HEADER = "agentlink_run"
#: The one that tells the id of the step that has replaced itself by a canvas, to the tasks of that.
STANDS_FOR_HEADER = "agentlink_stands_for"
#: The field of a run with the message that goes out should it fail: see `workflows.errbacks`.
ERRBACKS_FIELD = "errbacks"

_TRANSITION = COUNTING + resources.files(__package__).joinpath("transition.lua").read_text()
_RESERVE = COUNTING + resources.files(__package__).joinpath("reserve.lua").read_text()
_SET_TOTAL = "redis.call('HSET', KEYS[1], 'steps_total', redis.call('HLEN', KEYS[2]))"
_REOPEN = resources.files(__package__).joinpath("reopen.lua").read_text()
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
    #: How many tasks have replaced themselves, one by the next, until it came to this one.
    replacements: int = 0
    #: The step that has replaced itself by a canvas of which this one is a part: it fails with it.
    stands_for: str | None = None
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


def creation_commands(
    run_id: str, workflow: str, arguments: str, parent_id: str | None, root_id: str | None = None
) -> list[Command]:
    """What records a new run; it goes to the broker together with the message that starts it.

    `root_id` is the run, or the task, that all began with. Run again (the call was repeated, or a plain Celery client
    made it), they change nothing that is there.
    """
    settings, now = load(), time.time()
    # A run that goes on for days must not vanish: this TTL only bounds what never ends, the end of a run sets its own.
    ttl_s = int(2 * settings.keep_results_s)
    fields = {
        "workflow": workflow,
        "arguments": arguments[:_ARGUMENTS_MAX_CHARS],
        "state": RunState.QUEUED,
        "called_at": f"{now:.6f}",
        "steps_total": 0,
        "steps_done": 0,
        "parent_id": parent_id or "",
        "root_id": root_id or run_id,
    }
    return [
        *(["HSETNX", run_key(run_id), name, value] for name, value in fields.items()),
        ["EXPIRE", run_key(run_id), ttl_s],
        ["ZADD", INDEX_KEY, "NX", f"{now:.6f}", run_id],
        ["ZREMRANGEBYSCORE", INDEX_KEY, "-inf", f"{now - ttl_s:.6f}"],
        ["ZREMRANGEBYRANK", INDEX_KEY, 0, -settings.keep_runs - 1],
    ]


def standing_commands(run_id: str, headers: Mapping[str, Any]) -> list[Command]:
    """What records of a new run that it is a part of what a step has replaced itself by; see `STANDS_FOR_HEADER`."""
    stands_for = headers.get(STANDS_FOR_HEADER)
    return [["HSETNX", run_key(run_id), "stands_for", stands_for]] if stands_for else []


def record_plan(
    client: redis.Redis,
    run_id: str,
    created: Iterable[Command],
    steps: Sequence[StepRecord],
    *,
    root_id: str | None = None,
    within: str = "",
) -> None:
    """Record the steps a run will have, and the run itself should it not be known: see `creation_commands`.

    `within` is the place of what has built them, if it was a step of the same run, as which it was recorded. Done twice
    (its worker died meanwhile), it changes nothing.

    Raises:
        FanOutExceeded: there are too many; none is recorded.
    """
    root_id, key = root_id or run_id, steps_key(run_id)
    counting = fanout.counting_arguments(root_id, len(steps) - bool(within))
    with client.pipeline() as pipe:
        for command in created:
            pipe.execute_command(*command)  # type: ignore[no-untyped-call]
        pipe.eval(_RESERVE, 1, run_key(run_id), f"counted:{within}", counting, run_id)
        refusal = pipe.execute()[-1]
    if refusal:
        raise fanout.exceeded(root_id, refusal)
    with client.pipeline() as pipe:
        for step in steps:
            pipe.hsetnx(key, step.id, f"{step.state} {_step_json(step)}")
        pipe.expire(key, int(2 * load().keep_results_s))
        pipe.eval(_SET_TOTAL, 2, run_key(run_id), key)
        pipe.execute()


def transition_commands(
    task_id: str, celery_state: str, result: Any, traceback: str | None, request: Any
) -> Iterator[Command]:
    """What records a task's change of state; it goes to the broker together with Celery's own result.

    `request` is the task's request, or None or a made-up one where Celery fails a task from outside (the body of a
    failed chord, a task no worker knows).
    """
    really_ran = getattr(request, "task", None) is not None
    name = getattr(request, "task", None) or getattr(request, "name", None)
    place = getattr(request, PLACE_HEADER, None)
    run_id = getattr(request, RUN_HEADER, None) or getattr(request, "root_id", None) or task_id
    builds_canvas = getattr(app.tasks.get(name), "builds_canvas", False)
    planned_or_replaced = place is not None or bool(getattr(request, "replaced_task_nesting", 0))
    in_run = builds_canvas or planned_or_replaced or run_id != task_id
    if really_ran and not in_run and not fanout.is_counted(request):
        return  # a task outside any run
    step_state = STEP_STATE_OF_CELERY.get(celery_state) if name and (place is not None or not builds_canvas) else None
    # A run's last step has the run's id: that it has started says nothing new of the run.
    run_state = RUN_STATE_OF_CELERY.get(celery_state) if builds_canvas or celery_state != "STARTED" else None
    if step_state is None and run_state is None:
        return
    now = time.time()
    step = _step_after(task_id, step_state, result, request, now) if step_state else None
    ended_badly = celery_state in ("FAILURE", "REVOKED")
    failed_result = _failed_result(celery_state, result, traceback) if ended_badly else ("", "")
    root_id = getattr(request, "root_id", None) or run_id
    yield [
        "EVAL",
        _TRANSITION,
        3,
        run_key(run_id),
        run_key(task_id),
        fanout.tree_key(root_id),
        task_id if step else "",
        step_state or "",
        _step_json(step) if step else "",
        _origins(STEP_TRANSITIONS, step_state),
        int(step_state in TERMINAL_STEP_STATES),
        run_state or "",
        _origins(RUN_TRANSITIONS, run_state),
        int(run_state in TERMINAL_RUN_STATES),
        f"{now:.6f}",
        RUN_STATE_OF_CELERY[celery_state] if ended_badly else "",
        _failure_json(task_id, name, result, traceback) if ended_badly else "",
        int(load().keep_results_s),
        run_key(""),
        app.backend.task_keyprefix.decode(),
        *failed_result,
        getattr(request, "parent_id", None) or "" if planned_or_replaced and step_state is StepState.RUNNING else "",
        TREE_PREFIX,
        int(place is None and fanout.is_counted(request)),
        int(load().hard_time_limit_s),
    ]


def reopen_commands(letter: DeadLetter) -> Iterator[Command]:
    """What a dead letter that is sent again means to its run: the step waits, and the run goes on."""
    run_id, results = letter.run_id or letter.id, app.backend.task_keyprefix.decode()
    keys = [run_key(run_id), steps_key(run_id), results + letter.id, results + run_id]
    yield ["EVAL", _REOPEN, len(keys), *keys, letter.id, int(2 * load().keep_results_s)]


def read_run(client: redis.Redis, run_id: str) -> RunRecord:
    """One run.

    Raises:
        RunUnknown: it never was, or it ended longer ago than results are kept.
    """
    fields = client.hgetall(run_key(run_id))
    if not fields:
        raise RunUnknown(run_id)
    return _decode_run(run_id, fields)


def which_go_on(client: redis.Redis, run_ids: Sequence[str]) -> dict[str, bool]:
    """Of these runs, those that are known, and whether each has yet to end."""
    with client.pipeline(transaction=False) as pipe:
        for run_id in run_ids:
            pipe.hget(run_key(run_id), "state")
        states = pipe.execute()
    return {
        run_id: RunState(_text(state)) not in TERMINAL_RUN_STATES
        for run_id, state in zip(run_ids, states, strict=True)
        if state
    }


def which_ended(client: redis.Redis, run_id: str, step_ids: Sequence[str]) -> set[str]:
    """Of these steps of a run, those that have ended."""
    records = client.hmget(steps_key(run_id), list(step_ids))
    states = {step: _text(record).partition(" ")[0] for step, record in zip(step_ids, records, strict=True) if record}
    return {step for step, state in states.items() if state in TERMINAL_STEP_STATES}


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
    return StepRecord(
        id=task_id,
        name=getattr(request, "task", None) or getattr(request, "name", None) or "",
        place=getattr(request, PLACE_HEADER, None) or "",
        state=state,
        attempt=1 + (getattr(request, "retries", 0) or 0) + (getattr(request, DELIVERIES_HEADER, 0) or 0),
        replacements=getattr(request, "replaced_task_nesting", 0) or 0,
        stands_for=getattr(request, STANDS_FOR_HEADER, None),
        worker=getattr(request, "hostname", None),
        started_at=now if state is StepState.RUNNING else None,
        ended_at=now if state in TERMINAL_STEP_STATES else None,
        error=_error_text(result) if state in (StepState.FAILED, StepState.RETRYING) else None,
    )


def _error_text(result: Any) -> str:
    if not isinstance(result, dict):
        return str(result)[:_ERROR_MAX_CHARS]
    message = result.get("exc_message")
    words = ", ".join(map(str, message)) if isinstance(message, (list, tuple)) else str(message)
    return f"{result.get('exc_type')}: {words}"[:_ERROR_MAX_CHARS]


def _failure_json(task_id: str, name: str | None, result: Any, traceback: str | None) -> str:
    return json.dumps(
        {
            "step_id": task_id,
            "step": name,
            "error": _error_text(result),
            "traceback": (traceback or "")[-_ERROR_MAX_CHARS:],
        }
    )


def _failed_result(celery_state: str, result: Any, traceback: str | None) -> tuple[str, str]:
    """A failed result as Celery stores it, before and after the id of the task it is for."""
    done = datetime.now(tz=UTC).isoformat()
    meta = {"status": celery_state, "result": result, "traceback": traceback, "children": [], "date_done": done}
    return json.dumps(meta)[:-1] + ', "task_id": "', '"}'


def _step_json(step: StepRecord) -> str:
    return json.dumps({name: value for name, value in asdict(step).items() if name not in ("id", "state") and value})


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
