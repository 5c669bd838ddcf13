"""All there is to see of one step: what it was given, what came of it, what it has said, what it has taken."""

from __future__ import annotations

import time
from typing import Any

from kombu.utils.json import dumps
from redis import Redis

from agentlink.broker import profiles
from agentlink.broker.stored import StoredMeta
from agentlink.broker.streams import EMIT, LOG
from agentlink.masking import masked, masked_text
from agentlink.units import format_size
from tasks import app
from workflows import store
from workflows.states import TERMINAL_STEP_STATES
from workflows.store import StepRecord
from workflows.streams import StreamItem, joined, last_said_id, said_last

_TEXT_MAX_CHARS = 20_000
_SAID_MAX = 500
# What tasks have taken before changes slowly.
_PROFILES_FOR_S = 10.0


class StepPicture:
    """A step as a page sees it. `seen` is what Flower knows of tasks by their events."""

    def __init__(self, run_id: str, step_id: str, seen: Any) -> None:
        self.run_id, self.step_id, self.seen = run_id, step_id, seen
        self.said: dict[str, Any] = {}
        self.last_said: tuple[str | None, dict[str, Any]] = ("", {})
        self.reserved: tuple[float, int | None] = (0.0, None)

    def look(self, client: Redis) -> dict[str, Any]:
        """Everything, if anything has changed; else nothing."""
        step = store.read_step(client, self.run_id, self.step_id)
        facts = self._facts(client, step) if step else {"id": self.step_id, "name": "", "gone": True}
        if facts == self.said:
            return {}
        self.said = facts
        return facts

    def _facts(self, client: Redis, step: StepRecord) -> dict[str, Any]:
        ended = step.state in TERMINAL_STEP_STATES
        meta = app.backend.get_task_meta(step.id) if ended else {}
        return {
            "id": step.id,
            "name": step.name,
            "place": step.place,
            "state": step.state,
            "attempt": step.attempt,
            "worker": step.worker,
            "started_at": step.started_at,
            "ended_at": step.ended_at,
            "error": masked_text(step.error or "")[:_TEXT_MAX_CHARS],
            "traceback": masked_text(str(meta.get("traceback") or ""))[-_TEXT_MAX_CHARS:],
            "result": self.result(step.id) if meta.get("status") == "SUCCESS" else None,
            "arguments": self._arguments(step),
            "peak_bytes": step.peak_bytes,
            "cpu_s": step.cpu_s,
            "reserved_bytes": self._reserved(client, step.name),
            "waiting_for": step.waiting_for,
            "is_run": bool(getattr(app.tasks.get(step.name), "builds_canvas", False)) and step.id != self.run_id,
            **self._said(client),
        }

    @staticmethod
    def result(task_id: str) -> str:
        """A result as text, secrets in it masked; of one that is kept in a file, its size."""
        meta = app.backend.get_task_meta(task_id)
        if isinstance(meta, StoredMeta):
            return f"({format_size(meta.reference.size_bytes)}, kept in a file)"
        shown = masked(meta.get("result"))
        text = shown if isinstance(shown, str) else dumps(shown, ensure_ascii=False, indent=1)
        return text if len(text) <= _TEXT_MAX_CHARS else f"{text[:_TEXT_MAX_CHARS]}…"

    def _arguments(self, step: StepRecord) -> str | None:
        """As Flower has heard of them from the worker; None: it has not."""
        task = self.seen.tasks.get(step.id)
        if task is None or task.args is None:
            return None
        # Where secrets are told by the names of parameters, the sender has masked them.
        return masked_text(f"{task.args} {task.kwargs}")

    def _reserved(self, client: Redis, name: str) -> int | None:
        """What is set aside for it: what it declares, or what earlier runs have taken."""
        declared = getattr(app.tasks.get(name), "memory_bytes", None)
        if declared is not None:
            return int(declared)
        if time.monotonic() > self.reserved[0]:
            known = {profile.name: profile.memory_bytes for profile in profiles.profiles(client)}
            self.reserved = (time.monotonic() + _PROFILES_FOR_S, known.get(name))
        return self.reserved[1]

    def _said(self, client: Redis) -> dict[str, Any]:
        last = last_said_id(client, self.run_id)
        if last != self.last_said[0]:
            items = said_last(client, self.run_id, _SAID_MAX, step_id=self.step_id)
            self.last_said = (last, {"log": _lines(items), "output": _output(items)})
        return self.last_said[1]


def _lines(items: list[StreamItem]) -> list[list[Any]]:
    return [[item.at, item.attempt, masked_text(str(item.data))] for item in items if item.kind == LOG]


def _output(items: list[StreamItem]) -> str:
    return masked_text(joined([item for item in items if item.kind == EMIT]))[-_TEXT_MAX_CHARS:]
