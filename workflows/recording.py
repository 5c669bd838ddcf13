"""What records runs and their steps: broker commands that ride along with something else.

That is the message that starts a run, or the result that ends a step: whoever sees the one sees the other.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import redis
from celery.exceptions import NotRegistered

from agentlink.broker import along, event_log, fanout
from agentlink.broker.calls import DELIVERIES_HEADER, TELL, Command
from agentlink.broker.cancelled import RUN_HEADER
from agentlink.broker.fanout import COUNTING
from agentlink.broker.results import ASK
from agentlink.masking import masked_text
from agentlink.settings import load
from tasks.app import app
from workflows.ending import ENDING, ending_facts, parts_of_result, script
from workflows.errors import CanvasChanged
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
from workflows.store import (
    INDEX_KEY,
    PLACE_HEADER,
    REPLAY_HEADER,
    STANDS_FOR_HEADER,
    TELLS_END_HEADER,
    TOLERATED_HEADER,
    StepRecord,
    as_text,
    below_key,
    goes_on_ttl_s,
    graph_field,
    read_steps,
    run_key,
    steps_key,
)

_TRANSITION = ENDING + script("transition.lua")

_MAY_START = ENDING + script("may_start.lua")

#: Celery fails what comes after a failed task, a while later. A run that has been resumed meanwhile has nothing to do
#: with it.
_STALE = """
local run = redis.call('HMGET', KEYS[1], 'state', 'replay', 'failure')
if run[2] and not run[3] and (run[1] == 'QUEUED' or run[1] == 'RUNNING') then return 'stale' end
return nil
"""

#: What builds a run that was resumed meanwhile tells nothing any more: the run is built again.
_BUILT_AGAIN = """
if tonumber(ARGV[1]) < tonumber(redis.call('HGET', KEYS[1], 'replay') or 0) then return 'stale' end
return nil
"""

_RESERVE = COUNTING + script("reserve.lua")

_PLANNED = ENDING + script("planned.lua")

_ARGUMENTS_MAX_CHARS = 2_000

_ERROR_MAX_CHARS = 20_000

_NOT_KNOWN = "is not known to the worker; AGENTLINK_IMPORTS, where that is started, names the modules with your own"


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
        # Those that no worker has taken in all that time.
        ["ZREMRANGEBYSCORE", f"{INDEX_KEY}:{state}", "-inf", f"{now - ttl_s:.6f}"],
        ["ZREMRANGEBYRANK", f"{INDEX_KEY}:{state}", 0, -settings.keep_runs - 1],
    ]


def call_event(run_id: str, workflow: str, arguments: str, parent_id: str | None, agent: str | int | None) -> Command:
    """What tells that a run was called; it goes to the broker with the message that starts it, once."""
    facts = {"run_id": run_id, "workflow": workflow, "arguments": arguments, "parent_id": parent_id, "agent": agent}
    return [TELL, "workflow-called", event_log.encoded(facts)]


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
        tree, facts = fanout.tree_key(root_id), ending_facts(time.time(), None, None)
        pipe.eval(_PLANNED, 3, run_key(run_id), key, tree, facts)
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
    facts = ending_facts(now, failure, parts_of_result(celery_state, result, traceback) if ended_badly else None)
    built = run_key(run_id if place is not None else task_id)
    replay = getattr(request, REPLAY_HEADER, None) or 0
    if celery_state == "STARTED" and not getattr(request, TELLS_END_HEADER, None):
        stands_for = getattr(request, STANDS_FOR_HEADER, None) or ""
        keys, asked = (run_key(run_id), run_key(task_id), built), ending_facts(now, None, None)
        planned = place is not None or builds_canvas
        about = (task_id if step else "", int(builds_canvas), asked, stands_for, replay if planned else "")
        yield [ASK, _MAY_START, len(keys), *keys, *about]
    elif really_ran and builds_canvas:
        yield [ASK, _BUILT_AGAIN, 1, built, replay]
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
    """For people: what looks like a secret in it is masked."""
    if not isinstance(result, dict):
        return masked_text(str(result)[:_ERROR_MAX_CHARS])
    message = result.get("exc_message")
    words = ", ".join(map(str, message)) if isinstance(message, (list, tuple)) else str(message)
    words = result.get("exc_text") or words  # it says something else than its arguments
    if result.get("exc_type") == NotRegistered.__name__:
        words = f"{words} {_NOT_KNOWN}"
    return masked_text(f"{result.get('exc_type')}: {words}"[:_ERROR_MAX_CHARS])


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


def _step_json(step: StepRecord) -> str:
    return json.dumps({name: value for name, value in asdict(step).items() if name not in ("id", "state") and value})
