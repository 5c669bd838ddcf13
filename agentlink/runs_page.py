"""`agentlink runs` and `agentlink show`: runs for a person to read. Starts nothing."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import redis
from rich.console import Console
from rich.markup import escape

from agentlink.console import print_list
from agentlink.units import format_duration, format_size
from workflows import store
from workflows.errors import RunAmbiguous, RunUnknown
from workflows.states import RunState
from workflows.store import RunRecord, StepRecord

_SHORTEST_PREFIX = 4
_STEPS_SHOWN = 200


def find(client: redis.Redis, prefix: str) -> RunRecord:
    """The run whose id this is, or the only one whose id begins so.

    Raises:
        RunUnknown: there is none.
        RunAmbiguous: there are several.
    """
    try:
        return store.read_run(client, prefix)
    except RunUnknown:
        ids = store.run_ids(client, prefix) if len(prefix) >= _SHORTEST_PREFIX else []
        if len(ids) > 1:
            raise RunAmbiguous(prefix, ids) from None
        if not ids:
            raise
        return store.read_run(client, ids[0])


def listed(
    client: redis.Redis, *, state: RunState | None, workflow: str | None, tag: str | None, count: int, skip: int
) -> list[RunRecord]:
    """So many of the latest runs, after those that are skipped, in one state, of one workflow, with one tag."""
    found: list[RunRecord] = []
    at, page = 0, max(count + skip, 100)
    while len(found) < count + skip:
        runs = store.latest_runs(client, page, skip=at, state=state)
        found += [run for run in runs if _is_of(run, workflow) and (tag is None or tag in run.tags)]
        at += page
        if at >= store.how_many_runs(client, state):
            break
    return found[skip : skip + count]


def _is_of(run: RunRecord, workflow: str | None) -> bool:
    return workflow is None or workflow in (run.workflow, run.workflow.rsplit(".", 1)[-1])


def show_list(client: redis.Redis, runs: list[RunRecord], console: Console) -> None:
    """Print one line a run, and how many there are in each state."""
    if not runs:
        console.print("no such runs")
        return
    rows = [
        (
            run.id,
            run.workflow.rsplit(".", 1)[-1],
            run.state,
            f"{run.steps_done}/{run.steps_total}",
            _when(run.called_at),
            format_duration((run.ended_at or time.time()) - run.called_at),
            ((run.failure or {}).get("error") or run.arguments)[:200],
        )
        for run in runs
    ]
    print_list(console, ("run", "workflow", "state", "steps", "called", "took", "what"), rows)
    counts = store.count_runs(client)
    console.print(", ".join(f"{count} {state}" for state, count in counts.items() if count), highlight=False)


def everything(run: RunRecord, steps: list[StepRecord]) -> dict[str, Any]:
    """All that is known of a run, ready for JSON."""
    return asdict(run) | {"steps": [asdict(step) for step in steps]}


def show(run: RunRecord, steps: list[StepRecord], console: Console) -> None:
    """Print all that is known of a run for a person."""
    failure = run.failure or {}
    lines = {
        "run": run.id,
        "workflow": run.workflow,
        "arguments": run.arguments,
        "state": run.state,
        "called": _when(run.called_at),
        "took": format_duration((run.ended_at or time.time()) - run.called_at),
        "steps": f"{run.steps_done} of {run.steps_total} have ended",
        "step of": run.parent_id,
        "agent": run.agent,
        "tags": ", ".join(run.tags) or None,
        "failed in": f"{failure['step']} at {failure.get('place') or '-'}" if failure.get("step") else None,
        "error": failure.get("error"),
    }
    for name, value in lines.items():
        if value is not None:
            console.print(f"{name:<9} {escape(str(value))}", highlight=False, soft_wrap=True)
    titles = ("place", "step", "state", "attempt", "took", "memory", "id", "worker")
    print_list(console, titles, map(_step_row, steps[:_STEPS_SHOWN]))
    if len(steps) > _STEPS_SHOWN:
        console.print(f"… and {len(steps) - _STEPS_SHOWN} more; --json has them all")
    if failure.get("traceback"):
        console.print(failure["traceback"], highlight=False, markup=False, soft_wrap=True)


def _step_row(step: StepRecord) -> tuple[str, ...]:
    took = format_duration((step.ended_at or time.time()) - step.started_at) if step.started_at else ""
    name, attempt = step.name.rsplit(".", 1)[-1], str(step.attempt or "")
    memory = format_size(step.peak_bytes) if step.peak_bytes is not None else ""
    return step.place, name, step.state, attempt, took, memory, step.id, step.worker or ""


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
