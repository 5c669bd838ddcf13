"""The page of one run: what has changed of it and its steps, live, and what is done to it."""

from __future__ import annotations

import time
from typing import Any

from redis import Redis
from tornado.web import HTTPError

from agentlink.masking import masked_text
from agentlink.monitoring.flower.base import Change
from agentlink.monitoring.flower.pauses import Pauses
from agentlink.monitoring.flower.step import StepPicture
from agentlink.monitoring.flower.stream import Stream
from agentlink.monitoring.flower.words import shown_call
from tasks import app
from workflows import WorkflowRun, signals, steering, store
from workflows.errors import ResumeRefused
from workflows.progress import read_told
from workflows.shape import Node
from workflows.states import TERMINAL_RUN_STATES, RunState, StepState
from workflows.store import RunRecord, StepRecord

#: A step is told as numbers in this order.
STEP_FIELDS = ("name", "place", "state", "attempt", "started_at", "ended_at", "peak_bytes", "cpu_s", "progress")
_TEXT_MAX_CHARS = 20_000
_RESUME_TIMEOUT_S = 3.0


class RunStream(Stream):
    """A run, live: its facts, its graph, its steps that have changed, and all there is of one step."""

    async def get(self, run_id: str) -> None:  # type: ignore[override]
        """Tell of a run, and of the `step` that is chosen."""
        self.run_id = run_id
        chosen = self.word("step")
        self.step = StepPicture(run_id, chosen, self.application.events.state) if chosen else None
        self.known: dict[str, bytes | str] = {}
        self.names: dict[str, int] = {}
        self.fractions: dict[str, Any] = {}
        self.run: dict[str, Any] = {}
        self.graphs: dict[str, Any] = {}
        self.pauses = Pauses()
        self.arguments: str | None = None
        self.result: tuple[float | None, str | None] = (None, None)
        await super().get()

    def look(self) -> dict[str, Any]:
        """What has changed."""
        record = store.read_run(self.client, self.run_id)
        steps = self._changed_steps()
        changes: dict[str, Any] = {}
        if steps or not self.run:
            graphs = {place: _graph(node) for place, node in store.read_graphs(self.client, self.run_id).items()}
            if graphs != self.graphs:
                self.graphs = changes["graph"] = graphs
        if steps:
            changes["steps"] = {"names": list(self.names), "steps": steps}
        run = _facts(self.client, record) | self._call_and_result(record)
        if run != self.run:
            self.run = run
            changes["run"] = run | {"now": time.time()}
        if (pauses := self.pauses.look(self.client, record)) is not None:
            changes["pauses"] = pauses
        if self.step and (step := self.step.look(self.client)):
            changes["step"] = step
        return changes

    def _call_and_result(self, run: RunRecord) -> dict[str, Any]:
        """What may be large, and is read once."""
        if self.arguments is None:
            self.arguments = _arguments(self.client, run)
        succeeded_at = run.ended_at if run.state is RunState.SUCCEEDED else None
        if succeeded_at != self.result[0]:
            self.result = (succeeded_at, None if succeeded_at is None else StepPicture.result(run.id))
        return {"arguments": self.arguments, "result": self.result[1]}

    def _changed_steps(self) -> list[list[Any]]:
        changed = {step.id: step for step in store.changed_steps(self.client, self.run_id, self.known)}
        told = read_told(self.client, self.run_id)
        progress = {step_id: one.fraction for step_id, one in told.items()}
        moved = {step_id for step_id, fraction in progress.items() if self.fractions.get(step_id) != fraction}
        self.fractions = progress
        for step in store.steps_from(self.known, moved - changed.keys()):
            changed[step.id] = step
        return [self._numbers(step, progress.get(step.id)) for step in changed.values()]

    def _numbers(self, step: StepRecord, progress: float | None) -> list[Any]:
        name = self.names.setdefault(step.name, len(self.names))
        state = list(StepState).index(step.state)
        times = (step.started_at, step.ended_at, step.peak_bytes, step.cpu_s, progress)
        return [step.id, name, step.place, state, step.attempt, *times]


class RunChange(Change):
    """A run is cancelled or resumed, one of its steps is run again, or given the signal that it waits for."""

    async def post(self, run_id: str, action: str) -> None:
        """Do it; answer with a sentence."""
        change = {"cancel": _cancel, "resume": _resume, "retry": _retry, "signal": _signal}[action]
        self.answer({"said": await self.told(change, self.client, run_id, self.asked())})


def _facts(client: Redis, run: RunRecord) -> dict[str, Any]:
    failure = dict(run.failure or {})
    waits = signals.waits_of(client, [run.id])
    return {
        "id": run.id,
        "workflow": run.workflow,
        "state": run.state,
        "called_at": run.called_at,
        "started_at": run.started_at,
        "ended_at": run.ended_at if run.state in TERMINAL_RUN_STATES else None,
        "done": run.steps_done,
        "total": run.steps_total,
        "parent_id": run.parent_id,
        "agent": run.agent,
        "tags": run.tags,
        "failure": {name: masked_text(str(value))[-_TEXT_MAX_CHARS:] for name, value in failure.items() if value},
        "waits": [
            {"step": wait.step_id, "name": wait.name, "prompt": wait.prompt, "since": wait.since, "until": wait.until}
            for wait in waits
        ],
    }


def _arguments(client: Redis, run: RunRecord) -> str:
    """What it was called with, secrets by the names of parameters left out where the workflow is known here."""
    task = app.tasks.get(run.workflow)
    if task is None or len(run.arguments) > _TEXT_MAX_CHARS:
        return masked_text(run.arguments)[:_TEXT_MAX_CHARS]
    try:
        call = store.read_call(client, run.id)
    except ResumeRefused:
        return masked_text(run.arguments)
    return shown_call(task, call.args, call.kwargs)[:_TEXT_MAX_CHARS]


def _graph(node: Node) -> dict[str, Any]:
    """A graph as the page draws it."""
    drawn: dict[str, Any] = {"kind": node.kind}
    if node.children:
        drawn["children"] = [[count, _graph(child)] for count, child in node.children]
    if node.needs:
        drawn["needs"] = node.needs
    return drawn


def _cancel(client: Redis, run_id: str, asked: dict[str, Any]) -> str:
    ended = not steering.cancel(client, run_id, str(asked.get("reason") or "asked for in Flower"))
    return f"run {run_id} had ended already" if ended else f"run {run_id} is cancelled"


def _resume(client: Redis, run_id: str, asked: dict[str, Any]) -> str:
    steering.resume(client, run_id, timeout_s=_RESUME_TIMEOUT_S)
    return f"run {run_id} goes on"


def _retry(client: Redis, run_id: str, asked: dict[str, Any]) -> str:
    step_id = asked.get("step")
    if not isinstance(step_id, str) or not step_id:
        raise HTTPError(400, "want the id of a step")
    steering.resume(client, run_id, from_step=step_id, timeout_s=_RESUME_TIMEOUT_S)
    return f"step {step_id} runs again, and what comes after it"


def _signal(client: Redis, run_id: str, asked: dict[str, Any]) -> str:
    name = asked.get("name")
    if not isinstance(name, str) or not name:
        raise HTTPError(400, "want the name of a signal")
    try:
        got_it = WorkflowRun(run_id).signal(name, asked.get("payload"))
    except ValueError as error:
        raise HTTPError(400, "%s", error) from error
    return f"{name}: the step goes on" if got_it else f"{name}: kept until a step waits for it"
