"""The Workflows page: its live table, and what is done to several runs at once."""

from __future__ import annotations

import time
from typing import Any

from redis import Redis
from tornado.web import HTTPError

from agentlink.errors import AgentLinkError
from agentlink.masking import masked_text
from agentlink.monitoring.flower.base import Change
from agentlink.monitoring.flower.stream import Stream
from agentlink.monitoring.flower.sums import Sums, sums_of
from workflows import steering, store
from workflows.searching import Wanted, search
from workflows.signals import which_wait
from workflows.states import TERMINAL_RUN_STATES, RunState
from workflows.store import RunRecord

ROWS = 50
_TEXT_MAX_CHARS = 300
_RUNS_AT_ONCE_MAX = 500
#: For steps that still run, when a run is resumed.
_RESUME_TIMEOUT_S = 3.0


class RunsStream(Stream):
    """The table, live: of one page of it what has changed."""

    async def get(self) -> None:  # type: ignore[override]
        """Tell what is asked for: `state`, `workflow`, `tag`, `text`, and `page`, of which the first is 0."""
        try:
            state = self.word("state").upper()
            self.wanted = Wanted(
                state=RunState(state) if state else None,
                workflow=self.word("workflow"),
                tag=self.word("tag"),
                text=self.word("text"),
            )
            self.skip = ROWS * max(0, int(self.word("page", "0")))
        except ValueError as error:
            raise HTTPError(400, "%s", error) from error
        self.said: dict[str, Any] = {}
        self.rows: dict[str, Any] = {}
        await super().get()

    def look(self) -> dict[str, Any]:
        """Rows that have changed, the order of all, and the numbers of runs."""
        runs, total = search(self.client, self.wanted, ROWS, self.skip)
        waiting = which_wait(self.client, [run.id for run in runs])
        sums = sums_of(self.client, runs)
        rows = {run.id: _row(run, sums[run.id], run.id in waiting) for run in runs}
        changed = {run_id: row for run_id, row in rows.items() if self.rows.get(run_id) != row}
        self.rows = rows
        said = {
            "order": list(rows),
            "total": total,
            "skip": self.skip,
            "counts": store.count_runs(self.client),
        }
        if said == self.said and not changed:
            return {}
        self.said = said
        return {"runs": said | {"rows": changed, "now": time.time(), "page_rows": ROWS}}


def _row(run: RunRecord, sums: Sums, waits: bool) -> dict[str, Any]:
    error = (run.failure or {}).get("error") or ""
    return {
        "id": run.id,
        "workflow": run.workflow,
        "arguments": masked_text(run.arguments)[:_TEXT_MAX_CHARS],
        "state": run.state,
        "called_at": run.called_at,
        "started_at": run.started_at,
        "ended_at": run.ended_at if run.state in TERMINAL_RUN_STATES else None,
        "done": run.steps_done,
        "total": run.steps_total,
        "running": sums.running,
        "peak_bytes": sums.peak_bytes,
        "cpu_s": round(sums.cpu_s, 1),
        "waits": waits and run.state not in TERMINAL_RUN_STATES,
        "error": masked_text(error)[:_TEXT_MAX_CHARS],
        "agent": run.agent,
        "tags": run.tags,
        "parent_id": run.parent_id,
    }


class RunsChange(Change):
    """Several runs are cancelled or resumed."""

    async def post(self, action: str) -> None:
        """Do it to each of the `runs`; answer with how many were changed, and why others were not."""
        run_ids = self.asked().get("runs")
        if not isinstance(run_ids, list) or not 0 < len(run_ids) <= _RUNS_AT_ONCE_MAX:
            raise HTTPError(400, "want a list of 1 to %s runs", _RUNS_AT_ONCE_MAX)
        self.answer(await self.told(_change_all, self.client, action, [str(run_id) for run_id in run_ids]))


def _change_all(client: Redis, action: str, run_ids: list[str]) -> dict[str, Any]:
    changed, refused = 0, {}
    for run_id in run_ids:
        try:
            if action == "resume":
                steering.resume(client, run_id, timeout_s=_RESUME_TIMEOUT_S)
            elif not steering.cancel(client, run_id, "asked for in Flower"):
                refused[run_id] = f"run {run_id} had ended already"
                continue
            changed += 1
        except AgentLinkError as error:
            refused[run_id] = str(error)
    return {"changed": changed, "refused": refused}
