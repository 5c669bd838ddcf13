"""What makes up for a run that has failed: its completed steps are undone, newest first, then its `on_failure` starts.

Both are one run of their own, tagged with the failed one, which begins once.
"""

from __future__ import annotations

from typing import Any

import redis
from celery import chain
from celery.canvas import Signature

from agentlink.broker.calls import ALSO, Command
from tasks.app import app
from workflows import store
from workflows.base import keyed_id, workflow
from workflows.states import RunState, StepState
from workflows.store import ERRANDS_KEY, UNDONE_FIELD, StepRecord, run_key


@workflow(name="workflows.compensate")
def compensate(run_id: str, failure: dict[str, Any], undo: list[tuple[str, str]], on_failure: str | None) -> Any:
    """Undo completed steps (pairs of a step's id and its undoing task) in this order, then start `on_failure`."""
    steps: list[Signature] = [
        app.tasks[task].si(app.AsyncResult(step_id).get(disable_sync_subtasks=False)) for step_id, task in undo
    ]
    if on_failure is not None:
        steps.append(app.tasks[on_failure].si(run_id, failure))
    return chain(*steps) if len(steps) > 1 else steps[0]


def start(client: redis.Redis, run_id: str, errand: str) -> None:
    """Start what makes up for a run, once.

    Raises:
        RunUnknown: it is forgotten.
        KeyError: its workflow is not known here.
        Overtaken: it has been resumed meanwhile.
    """
    run, replay = store.read_run(client, run_id), store.read_call(client, run_id).replay
    task = app.tasks[run.workflow]
    undo = [pair for step in _completed(client, run_id) if (pair := _undoing(step))] if task.undoes else []
    on_failure = task.failure_workflow.name if task.failure_workflow is not None else None
    if not undo and on_failure is None:
        client.zrem(ERRANDS_KEY, errand)
        return
    own_id, key = keyed_id(compensate.name, f"{run_id}/{replay}"), run_key(run_id)
    also: list[Command] = [
        ["EXPECT", RunState.FAILED, "HGET", key, "state"],
        ["EXPECT", replay or "false", "HGET", key, "replay"],  # Lua's word for a field that is not there
        ["ZREM", ERRANDS_KEY, errand],
    ]
    if undo:
        also.append(["HSET", key, UNDONE_FIELD, own_id])
    options: dict[str, Any] = {ALSO: also}
    compensate.apply_async(
        (run_id, dict(run.failure or {}), undo, on_failure),
        task_id=own_id,
        tags=[f"for {run_id}"],
        **options,
    )


def _completed(client: redis.Redis, run_id: str) -> list[StepRecord]:
    done = [step for step in store.read_steps(client, run_id) if step.state is StepState.SUCCEEDED]
    return sorted(done, key=lambda step: (step.ended_at or 0.0, step.numbers), reverse=True)


def _undoing(step: StepRecord) -> tuple[str, str] | None:
    undo = getattr(app.tasks.get(step.name), "undo", None)
    return (step.id, undo.name) if undo is not None else None
