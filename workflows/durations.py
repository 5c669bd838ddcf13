"""How long runs and their steps have taken before: what the progress of the next is estimated by.

Of workflows the last runs' durations are kept here; of tasks, what the guard has measured.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from importlib import resources
from statistics import fmean
from typing import Any

import redis

from agentlink.broker.calls import Command
from agentlink.broker.cancelled import RUN_HEADER
from agentlink.broker.profiles import MEASURES_PREFIX
from agentlink.broker.streams import RUN_PREFIX
from tasks.app import app
from workflows.states import RUN_STATE_OF_CELERY, TERMINAL_RUN_STATES
from workflows.store import PLACE_HEADER

#: The durations of a workflow's last runs that succeeded, in seconds: a list, by the workflow's name.
DURATIONS_PREFIX = "agentlink:durations:"

_ENDED = resources.files(__package__).joinpath("ended.lua").read_text("utf-8")
_KEPT = 32
# As measures of tasks: a workflow that nobody has run for so long is forgotten.
_KEPT_S = 90 * 86400


def end_commands(
    task_id: str, celery_state: str, result: Any, traceback: str | None, request: Any
) -> Iterator[Command]:
    """What notes that a task has ended its run, if it has; it goes to the broker after what records the task's end."""
    if RUN_STATE_OF_CELERY.get(celery_state) not in TERMINAL_RUN_STATES:
        return
    name = getattr(request, "task", None) or getattr(request, "name", None)
    run_id = getattr(request, RUN_HEADER, None) or getattr(request, "root_id", None) or task_id
    builds_canvas = getattr(app.tasks.get(name), "builds_canvas", False)
    planned = getattr(request, PLACE_HEADER, None) is not None or bool(getattr(request, "replaced_task_nesting", 0))
    if celery_state == "SUCCESS":  # only a run's last step, which has its id, ends it so
        may_end = builds_canvas or (run_id == task_id and planned)
    else:
        may_end = builds_canvas or run_id != task_id or planned or getattr(request, "task", None) is None
    if may_end:
        yield ["EVAL", _ENDED, 1, RUN_PREFIX + run_id, RUN_PREFIX, run_id, task_id, DURATIONS_PREFIX, _KEPT, _KEPT_S]


def expected_s(client: redis.Redis, names: Collection[str]) -> dict[str, float]:
    """The mean seconds that tasks and workflows have taken, of those names of which anything is known."""
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.lrange(DURATIONS_PREFIX + name, 0, -1)
            pipe.lrange(MEASURES_PREFIX + name, 0, -1)
        answers = pipe.execute()
    known: dict[str, float] = {}
    for name, as_workflow, as_task in zip(names, answers[::2], answers[1::2], strict=True):
        if as_workflow:
            known[name] = fmean(map(float, as_workflow))
        elif as_task and not getattr(app.tasks.get(name), "builds_canvas", False):  # that measures the building alone
            known[name] = fmean(json.loads(entry)[-1] for entry in as_task)
    return known
