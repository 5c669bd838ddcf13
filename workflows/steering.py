"""Cancel a run, and go on with one that has ended badly."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import redis
from kombu.utils.json import dumps

from agentlink.broker import dead_letters
from agentlink.broker.calls import ALSO
from agentlink.broker.dead_letters import DeadLetter
from tasks.app import app
from workflows import ending, store
from workflows.ending import ENDING, ending_facts
from workflows.errors import ResumeRefused, RunNotEnded, RunUnknown, WorkflowError
from workflows.shape import comes_after
from workflows.states import RunState
from workflows.store import ERRANDS_KEY, REPLAY_HEADER, RunRecord, StepRecord, run_key

_CANCEL = ENDING + ending.script("cancel.lua")
#: Makes a run that has ended badly ready to be built again.
RESET = ENDING + ending.script("reset.lua")
_LOOK_AGAIN_S = 0.1
_PAGE = 500

Arguments = Sequence[Any] | Mapping[str, Any]


def cancel(client: redis.Redis, run_id: str, reason: str = "") -> bool:
    """End a run, and the runs below it: nothing of it begins any more, and what runs is asked to end, then killed.

    False when it had ended already.

    Raises:
        RunUnknown: it never was, or it ended longer ago than results are kept.
    """
    failure = {"error": f"cancelled: {reason}" if reason else "cancelled"}
    state = client.eval(_CANCEL, 1, run_key(run_id), ending_facts(time.time(), failure, None))
    if state is None:
        raise RunUnknown(run_id)
    return store.as_text(state) in (RunState.QUEUED, RunState.RUNNING)


def resume(
    client: redis.Redis,
    run_id: str,
    *,
    from_step: str | None = None,
    with_args: Arguments | None = None,
    timeout_s: float = 30.0,
) -> None:
    """Go on with a run that has failed or was cancelled: what has succeeded stays, all else runs.

    With `from_step` (a step's id, its place, or the name of its task where that is the only one) that step runs again
    too, and all that comes after it; the run may have succeeded then. `with_args` are its arguments from now on, in
    place of those the workflow function gives it: a sequence, or a mapping of names; what the step before it returns
    still comes first. Steps that still run are waited for, for so long.

    Raises:
        RunUnknown: it never was, or it ended longer ago than results are kept.
        RunNotEnded: it goes on, or one of its steps does.
        ResumeRefused: the step is not there; or the run is a step of another, which is to be resumed; or completed
            steps were undone since it failed.
    """
    call = store.read_call(client, run_id)  # before anything is changed
    chosen = _chosen(client, run_id, from_step) if from_step is not None else []
    if with_args is not None and not chosen:
        raise ResumeRefused(run_id, "with_args needs from_step, the step that the arguments are for")
    override = "" if with_args is None else dumps(_pair(with_args))
    failed = _reset(client, run_id, [step.id for step in chosen], override, timeout_s)
    dead_letters.drop(client, [*failed, run_id])  # before any of them can be one again
    if call.workflow in app.tasks:  # else a worker, which knows it, does so a little later
        replay(client, run_id)


def resume_all(
    client: redis.Redis, *, workflow: str | None = None, error: str | None = None, timeout_s: float = 30.0
) -> Iterator[tuple[RunRecord, WorkflowError | None]]:
    """Resume all failed runs, or those of one workflow, or with a text in their error; each with why it was not.

    `workflow` is its name, in full or its last part; upper and lower case of `error` are the same.
    """
    for run in list(failed_runs(client, workflow=workflow, error=error)):
        try:
            resume(client, run.id, timeout_s=timeout_s)
        except WorkflowError as refused:
            yield run, refused
        else:
            yield run, None


def failed_runs(client: redis.Redis, *, workflow: str | None = None, error: str | None = None) -> Iterator[RunRecord]:
    """The failed runs that are no steps of others, newest first; see `resume_all`."""
    skip = 0
    while runs := store.latest_runs(client, _PAGE, skip=skip, state=RunState.FAILED):
        for run in runs:
            named = workflow is None or workflow in (run.workflow, run.workflow.rsplit(".", 1)[-1])
            text = (run.failure or {}).get("error", "")
            if named and run.parent_id is None and (error is None or error.casefold() in text.casefold()):
                yield run
        skip += _PAGE


def resume_for(client: redis.Redis, letter: DeadLetter) -> bool:
    """Resume the run of a dead letter that is sent again; False when it is in none that is known.

    Raises:
        RunNotEnded: its run goes on, or one of its steps does.
    """
    run_id, seen = letter.run_id or letter.id, False
    while (parent := client.hget(run_key(run_id), "parent_id")) is not None:
        seen = True
        if not parent:
            break
        run_id = store.as_text(parent)
    if seen:
        resume(client, run_id)
    else:
        client.delete(app.backend.get_key_for_task(letter.id))  # it has not ended
    return seen


def replay(client: redis.Redis, run_id: str) -> None:
    """Have a run that was reset built again."""
    call = store.read_call(client, run_id)
    headers = {REPLAY_HEADER: call.replay}
    done = ["ZREM", ERRANDS_KEY, f"replay {run_id}"]
    # Not `task.apply_async`, which would record a new run, and check arguments that were complete long ago.
    options = call.options | {"headers": headers, "task_type": app.tasks[call.workflow], ALSO: [done]}
    app.send_task(call.workflow, call.args, call.kwargs, task_id=run_id, **options)


def _pair(arguments: Arguments) -> tuple[list[Any], dict[str, Any]]:
    return ([], dict(arguments)) if isinstance(arguments, Mapping) else (list(arguments), {})


def _chosen(client: redis.Redis, run_id: str, from_step: str) -> list[StepRecord]:
    """The step that is meant, then all that come after it."""
    steps = [step for step in store.read_steps(client, run_id) if step.place]
    meant = [step for step in steps if from_step in (step.id, step.place)]
    meant = meant or [step for step in steps if from_step in (step.name, step.name.rsplit(".", 1)[-1])]
    if len(meant) != 1:
        places = ", ".join(f"{step.place} ({step.name})" for step in (meant or steps)[:10])
        what = "there are several of" if meant else "there is no step"
        raise ResumeRefused(run_id, f"{what} {from_step!r}; want the place of a step: {places or 'it has none yet'}")
    graphs, place = store.read_graphs(client, run_id), meant[0].numbers
    return [*meant, *(step for step in steps if step is not meant[0] and comes_after(graphs, place, step.numbers))]


def _reset(client: redis.Redis, run_id: str, chosen: list[str], override: str, timeout_s: float) -> list[str]:
    """Reset a run; the ids of the steps that had failed."""
    deadline = time.monotonic() + timeout_s
    while True:
        facts = ending_facts(time.time(), None, None)
        args = [facts, store.goes_on_ttl_s(), dumps(chosen), override]
        answer: list[bytes] = client.eval(RESET, 1, run_key(run_id), *args)
        said, *what = map(store.as_text, answer)
        if said == "reset":
            return what
        if said == "unknown":
            raise RunUnknown(run_id)
        if said == "below":
            raise ResumeRefused(run_id, f"it is a step of run {what[0]}: resume that one")
        if said == "undone":
            raise ResumeRefused(run_id, f"its completed steps were undone by run {what[0]}: start it anew")
        if said == "state":
            raise RunNotEnded(run_id, f"it is {what[0]}")
        if time.monotonic() > deadline:
            raise RunNotEnded(run_id, f"its step {what[0]} still runs")
        time.sleep(_LOOK_AGAIN_S)  # for a step that runs to its end
