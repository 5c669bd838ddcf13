"""What the scripts that end runs are told, and what they leave as results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from agentlink.broker.event_log import EVENTS
from agentlink.broker.fanout import COUNTING, TREE_PREFIX
from agentlink.broker.outcomes import COUNTING_ENDS
from agentlink.settings import load
from tasks.app import app
from workflows.store import goes_on_ttl_s, run_key


def script(name: str) -> str:
    """The source of one of the scripts here."""
    return resources.files(__package__).joinpath(name).read_text("utf-8")


#: Lua that stands before the scripts that move steps or end runs.
ENDING = COUNTING + EVENTS + COUNTING_ENDS + script("ending.lua")

#: What Celery stores of a task that was revoked, of one whose run has ended before it began.
_WITHDRAWN = {"exc_type": "TaskRevokedError", "exc_message": ["its run has ended"], "exc_module": "celery.exceptions"}


def ending_facts(now: float, failure: Mapping[str, Any] | None, failed: tuple[str, str] | None) -> str:
    """JSON of what the scripts that end runs are told, see ending.lua.

    `failed` is what the result of a run that ends as the step did is, before and after its id.
    """
    revoked = parts_of_result("REVOKED", _WITHDRAWN, None)
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


def failed_result(failure: Mapping[str, Any]) -> tuple[str, str]:
    """What the result of a run is that ends with a failure recorded before, before and after its id."""
    result = {"exc_type": failure.get("type", "Exception"), "exc_message": [failure.get("message", "")]}
    return parts_of_result("FAILURE", result | {"exc_module": "builtins"}, failure.get("traceback"))


def parts_of_result(celery_state: str, result: Any, traceback: str | None) -> tuple[str, str]:
    """A failed result as Celery stores it, before and after the id of the task it is for."""
    done = datetime.now(tz=UTC).isoformat()
    meta = {"status": celery_state, "result": result, "traceback": traceback, "children": [], "date_done": done}
    return json.dumps(meta)[:-1] + ', "task_id": "', '"}'
