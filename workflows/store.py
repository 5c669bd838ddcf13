"""Where runs and their steps are kept: the only file that knows the keys.

A run is a hash, its steps a hash beside it (step id → `STATE {json}`), both with a TTL; one sorted set lists runs by
the time they were called. Everything is written as broker commands that ride along with something else: the message
that starts the run, or the result that ends a step.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import redis
from kombu.utils.json import loads

from agentlink.broker import along, fanout
from agentlink.broker.calls import DELIVERIES_HEADER, Command
from agentlink.broker.cancelled import RUN_HEADER
from agentlink.broker.fanout import COUNTING, TREE_PREFIX
from agentlink.broker.results import ASK
from agentlink.broker.streams import RUN_PREFIX
from agentlink.settings import load
from tasks.app import app
from workflows.errors import CanvasChanged, ResumeRefused, RunUnknown
from workflows.shape import Node, parse
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


def script(name: str) -> str:
    """The source of one of the scripts here."""
    return resources.files(__package__).joinpath(name).read_text()


#: Lua that stands before the scripts that move steps or end runs.
ENDING = COUNTING + script("ending.lua")
_TRANSITION = ENDING + script("transition.lua")
_MAY_START = ENDING + script("may_start.lua")
#: Celery fails what comes after a failed task, a while later. A run that has been resumed meanwhile has nothing to do
#: with it.
_STALE = """
local run = redis.call('HMGET', KEYS[1], 'state', 'replay', 'failure')
if run[2] and not run[3] and (run[1] == 'QUEUED' or run[1] == 'RUNNING') then return 'stale' end
return nil
"""
_RESERVE = COUNTING + script("reserve.lua")
_SET_TOTAL = "redis.call('HSET', KEYS[1], 'steps_total', redis.call('HLEN', KEYS[2]))"
#: What Celery stores of a task that was revoked, of one whose run has ended before it began.
_WITHDRAWN = {"exc_type": "TaskRevokedError", "exc_message": ["its run has ended"], "exc_module": "celery.exceptions"}
_ARGUMENTS_MAX_CHARS = 2_000
_ERROR_MAX_CHARS = 20_000
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


def creation_commands(
    run_id: str,
    workflow: str,
    arguments: str,
    parent_id: str | None,
    root_id: str | None = None,
    started_in: str | None = None,
    state: RunState = RunState.QUEUED,
    **facts: str | int,
) -> list[Command]:
    """What records a new run; it goes to the broker together with the message that starts it.

    `root_id` is the run, or the task, that all began with, `started_in` the run in a step of which it was called.
    `facts` are more fields of the run. Run again (the call was repeated, or a plain Celery client made it), they change
    nothing that is there.
    """
    settings, now = load(), time.time()
    ttl_s = goes_on_ttl_s()
    fields = {
        "workflow": workflow,
        "arguments": arguments[:_ARGUMENTS_MAX_CHARS],
        "state": state,
        "called_at": f"{now:.6f}",
        "steps_total": 0,
        "steps_done": 0,
        "parent_id": parent_id or "",
        "root_id": root_id or run_id,
        **facts,
    }
    above = parent_id or started_in
    below: list[Command] = [["SADD", below_key(above), run_id], ["EXPIRE", below_key(above), ttl_s]] if above else []
    return [
        *(["HSETNX", run_key(run_id), name, value] for name, value in fields.items()),
        ["EXPIRE", run_key(run_id), ttl_s],
        *below,
        ["ZADD", INDEX_KEY, "NX", f"{now:.6f}", run_id],
        ["ZADD", f"{INDEX_KEY}:{state}", "NX", f"{now:.6f}", run_id],
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
    graph: str = "",
) -> None:
    """Record the steps a run will have, and the run itself should it not be known: see `creation_commands`.

    `within` is the place of what has built them, if it was a step of the same run, as which it was recorded; `graph` is
    how they hang together, see `workflows.shape`. Done twice (its worker died meanwhile), it changes nothing.

    Raises:
        FanOutExceeded: there are too many; none is recorded.
        CanvasChanged: another canvas was recorded before.
    """
    shape = f"{graph} {zlib.crc32(' '.join(step.name for step in steps).encode()):08x}"
    root_id, key = root_id or run_id, steps_key(run_id)
    counting = fanout.counting_arguments(root_id, len(steps) - bool(within))
    with client.pipeline() as pipe:
        for command in created:
            pipe.execute_command(*command)  # type: ignore[no-untyped-call]
        pipe.eval(_RESERVE, 1, run_key(run_id), f"counted:{within}", counting, run_id, graph_field(within), shape)
        refusal = pipe.execute()[-1]
    if refusal and as_text(refusal[0]) == "changed":
        raise CanvasChanged(run_id, *_first_difference(read_steps(client, run_id), steps, within))
    if refusal:
        raise fanout.exceeded(root_id, refusal)
    with client.pipeline() as pipe:
        for step in steps:
            pipe.hsetnx(key, step.id, f"{step.state} {_step_json(step)}")
        pipe.expire(key, goes_on_ttl_s())
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
    if celery_state == "FAILURE" and not (getattr(request, "hostname", None) or getattr(request, "name", None)):
        yield [ASK, _STALE, 1, run_key(task_id)]
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
    failure = _failure(task_id, name, step, result, traceback) if ended_badly else None
    facts = ending_facts(now, failure, _parts_of_result(celery_state, result, traceback) if ended_badly else None)
    if celery_state == "STARTED" and not getattr(request, TELLS_END_HEADER, None):
        stands_for = getattr(request, STANDS_FOR_HEADER, None) or ""
        keys, asked = (run_key(run_id), run_key(task_id)), ending_facts(now, None, None)
        yield [ASK, _MAY_START, 2, *keys, task_id if step else "", int(builds_canvas), asked, stands_for]
    tolerated = celery_state == "FAILURE" and bool(getattr(request, TOLERATED_HEADER, None))
    yield [
        "EVAL",
        _TRANSITION,
        3,
        run_key(run_id),
        run_key(task_id),
        fanout.tree_key(getattr(request, "root_id", None) or run_id),
        task_id if step else "",
        step_state or "",
        _step_json(step) if step else "",
        _origins(STEP_TRANSITIONS, step_state),
        run_state or "",
        _origins(RUN_TRANSITIONS, run_state),
        int(run_state in TERMINAL_RUN_STATES),
        RUN_STATE_OF_CELERY[celery_state] if ended_badly and not tolerated else "",
        getattr(request, "parent_id", None) or "" if planned_or_replaced and step_state is StepState.RUNNING else "",
        int(step_state in TERMINAL_STEP_STATES and place is None and fanout.is_counted(request)),
        int(load().hard_time_limit_s),
        facts,
    ]


def ending_facts(now: float, failure: Mapping[str, Any] | None, failed: tuple[str, str] | None) -> str:
    """JSON of what the scripts that end runs are told, see ending.lua.

    `failed` is what the result of a run that ends as the step did is, before and after its id.
    """
    revoked = _parts_of_result("REVOKED", _WITHDRAWN, None)
    facts = {
        "now": f"{now:.6f}",
        "keep_s": int(load().keep_results_s),
        "keep_runs": load().keep_runs,
        "keep_listed_s": goes_on_ttl_s(),
        # As long as a step that runs by then may run; one that begins later is refused.
        "keep_cancelled_s": int(load().hard_time_limit_s + 3600),
        "runs": run_key(""),
        "results": app.backend.task_keyprefix.decode(),
        "trees": TREE_PREFIX,
        "failure": json.dumps(failure or {}),
        "failed": failed or revoked,
        "revoked": revoked,
    }
    return json.dumps(facts)


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


def which_go_on(client: redis.Redis, run_ids: Sequence[str]) -> dict[str, bool]:
    """Of these runs, those that are known, and whether each has yet to end."""
    with client.pipeline(transaction=False) as pipe:
        for run_id in run_ids:
            pipe.hget(run_key(run_id), "state")
        states = pipe.execute()
    return {
        run_id: RunState(as_text(state)) not in TERMINAL_RUN_STATES
        for run_id, state in zip(run_ids, states, strict=True)
        if state
    }


def which_ended(client: redis.Redis, run_id: str, step_ids: Sequence[str]) -> set[str]:
    """Of these steps of a run, those that have ended."""
    records = client.hmget(steps_key(run_id), list(step_ids))
    states = {step: as_text(record).partition(" ")[0] for step, record in zip(step_ids, records, strict=True) if record}
    return {step for step, state in states.items() if state in TERMINAL_STEP_STATES}


def read_steps(client: redis.Redis, run_id: str) -> list[StepRecord]:
    """A run's steps in the order of their places in its canvas."""
    steps = [_decode_step(as_text(key), as_text(value)) for key, value in client.hgetall(steps_key(run_id)).items()]
    return sorted(steps, key=lambda step: step.numbers)


def latest_runs(client: redis.Redis, count: int, *, skip: int = 0, state: RunState | None = None) -> list[RunRecord]:
    """The runs called last, newest first: all, or those in one state; so many, after those that are skipped."""
    index = INDEX_KEY if state is None else f"{INDEX_KEY}:{state}"
    newest: list[bytes] = client.zrevrange(index, skip, skip + count - 1)  # type: ignore[assignment]  # no scores asked for
    run_ids = [as_text(run_id) for run_id in newest]
    with client.pipeline(transaction=False) as pipe:
        for run_id in run_ids:
            pipe.hmget(run_key(run_id), _RUN_FIELDS)
        answers = pipe.execute()
    runs = [_decode_run(run_id, fields) for run_id, fields in zip(run_ids, answers, strict=True) if fields[0]]
    return [run for run in runs if state in (None, run.state)]


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


def _first_difference(
    known: Sequence[StepRecord], steps: Sequence[StepRecord], within: str
) -> tuple[str, str | None, str | None]:
    """The first place at which two canvases differ, and the names of the two steps there, or None for none."""
    prefix = f"{within}." if within else ""
    was = {step.place: step.name for step in known if step.place and step.place.startswith(prefix)}
    now = {step.place: step.name for step in steps}
    for place in sorted(was.keys() | now.keys(), key=lambda place: [int(part) for part in place.split(".")]):
        if was.get(place) != now.get(place):
            return place, was.get(place), now.get(place)
    return within, None, None


def _origins(table: Mapping[Any, frozenset[Any]], state: RunState | StepState | None) -> str:
    return json.dumps({before: True for before, after in table.items() if state in after})


def _step_after(task_id: str, state: StepState, result: Any, request: Any, now: float) -> StepRecord:
    used = along.used_so_far() if state in TERMINAL_STEP_STATES else None
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
        peak_bytes=used.peak_bytes if used else None,
        cpu_s=round(used.cpu_s, 3) if used else None,
    )


def _error_text(result: Any) -> str:
    if not isinstance(result, dict):
        return str(result)[:_ERROR_MAX_CHARS]
    message = result.get("exc_message")
    words = ", ".join(map(str, message)) if isinstance(message, (list, tuple)) else str(message)
    words = result.get("exc_text") or words  # it says something else than its arguments
    return f"{result.get('exc_type')}: {words}"[:_ERROR_MAX_CHARS]


def _failure(
    task_id: str, name: str | None, step: StepRecord | None, result: Any, traceback: str | None
) -> dict[str, Any]:
    kind, _, message = _error_text(result).partition(": ")
    return {
        "step_id": task_id,
        "step": name,
        "place": step.place if step else "",
        "attempts": step.attempt if step else 1,
        "error": _error_text(result),
        "type": kind if isinstance(result, dict) else "",
        "message": message if isinstance(result, dict) else str(result),
        "traceback": (traceback or "")[-_ERROR_MAX_CHARS:],
    }


def failed_result(failure: Mapping[str, Any]) -> tuple[str, str]:
    """What the result of a run is that ends with a failure recorded before, before and after its id."""
    result = {"exc_type": failure.get("type", "Exception"), "exc_message": [failure.get("message", "")]}
    return _parts_of_result("FAILURE", result | {"exc_module": "builtins"}, failure.get("traceback"))


def _parts_of_result(celery_state: str, result: Any, traceback: str | None) -> tuple[str, str]:
    """A failed result as Celery stores it, before and after the id of the task it is for."""
    done = datetime.now(tz=UTC).isoformat()
    meta = {"status": celery_state, "result": result, "traceback": traceback, "children": [], "date_done": done}
    return json.dumps(meta)[:-1] + ', "task_id": "', '"}'


def _step_json(step: StepRecord) -> str:
    return json.dumps({name: value for name, value in asdict(step).items() if name not in ("id", "state") and value})


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
