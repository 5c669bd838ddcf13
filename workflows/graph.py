"""Graphs: steps that each start as soon as those they need have succeeded, in any order without a circle.

A chain of chords can't say that: where one step of a level is late, all of the next wait. A `Graph` is a canvas all the
same: a workflow returns one, its steps have ids and places, and its last step answers for the run.

The messages of all its steps are written before the first of them starts, into the broker's memory of the graph and not
into a queue. The step that stores a result counts down what the others wait for, and queues those that wait for
nothing more: all in one script, so that no step is lost or queued twice whoever dies. It costs no round trip.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

from celery.canvas import Signature, _chain, _chord
from celery.exceptions import Ignore
from celery.result import AsyncResult

from agentlink.broker.calls import HELD, Command
from agentlink.broker.cancelled import RUN_HEADER
from agentlink.broker.lease import TURNS
from agentlink.broker.results import ResultBackend
from agentlink.settings import load
from tasks.app import app
from tasks.base import BaseTask
from workflows.errors import CanvasUnusable
from workflows.store import PLACE_HEADER, TOLERATED_HEADER, run_key

logger = logging.getLogger(__name__)

#: The message header that tells a step its graph and its number in it.
GRAPH_HEADER = "agentlink_graph"
_GRAPH_PREFIX = "agentlink:graph:"

_LUA = TURNS + resources.files(__package__).joinpath("graph.lua").read_text("utf-8")
_BEGIN, _ENDED, _TURN = (
    _LUA + resources.files(__package__).joinpath(f"graph_{name}.lua").read_text("utf-8")
    for name in ("begin", "ended", "turn")
)
_ENDS = ("SUCCESS", "FAILURE", "REVOKED")


@Signature.register_type(name="agentlink.graph")
class Graph(_chord):
    """`steps`, of which step i starts when those at the places `needs[i]` have succeeded, and `last` when all have.

    With `keep_going` a step's failure does not end the run: all that needs it is left out, the rest goes on, and `last`
    starts when nothing is left to do. A step is one task, not a canvas, and its task's base is `GraphTask`.
    """

    def __init__(
        self,
        header: Sequence[Signature],
        body: Signature | None = None,
        *,
        needs: Sequence[Sequence[int]] = (),
        keep_going: bool = False,
        kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        kwargs = kwargs or {"kwargs": {}, "needs": [list(places) for places in needs], "keep_going": keep_going}
        super().__init__(list(header), body, kwargs=kwargs, **options)
        self.subtask_type = "agentlink.graph"

    def freeze(self, _id: str | None = None, **options: Any) -> AsyncResult:
        """Celery's: the last step answers for all. The others have their ids from the plan."""
        return self.body.freeze(_id, **{name: value for name, value in options.items() if name != "parent_id"})

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> None:
        """Send the graph, unless it has begun: what replaces a task may be sent twice.

        Raises:
            CanvasUnusable: it is not what a workflow has returned, or one of its steps is a canvas.
        """
        steps = [*self.tasks, _first(self.body)]
        headers = self.tasks[0].options.get("headers") or {} if self.tasks else {}
        if any(isinstance(step, (_chain, _chord)) for step in steps) or RUN_HEADER not in headers:
            raise CanvasUnusable("a graph has one or more steps, each one task, and is returned by a workflow")
        run_id = headers[RUN_HEADER]
        key = f"{_GRAPH_PREFIX}{run_id}:{headers[PLACE_HEADER].rpartition('.')[0]}"
        if app.backend.patiently(self._has_begun, key, run_id, steps):
            return
        body_options = {name: value for name, value in (self.options | options).items() if name != "parent_id"}
        with app.producer_or_acquire() as producer:
            for number, step in enumerate(steps, start=1):
                mine: dict[str, Any] = {GRAPH_HEADER: [key, number]}
                if number < len(steps) and self.kwargs["keep_going"]:
                    mine[TOLERATED_HEADER] = True
                step.options["headers"] = step.options["headers"] | mine
                sent, more = (self.body, body_options) if number == len(steps) else (step, {})
                held = {HELD: [key, f"message:{number}"]}
                sent.apply_async(producer=producer, add_to_parent=False, **more, **held)
        app.backend.patiently(self._begin, key, run_id)

    def _has_begun(self, key: str, run_id: str, steps: list[Signature]) -> bool:
        """Whether it has begun; if not, the broker knows its shape now."""
        client = app.backend.client
        if client.hget(key, "begun") == b"1 " + (client.hget(run_key(run_id), "started_at") or b""):
            return True
        after: list[list[int]] = [[] for _ in steps]
        for place, needed in enumerate(self.kwargs["needs"]):
            for other in set(needed):
                after[other].append(place + 1)
        for numbers in after[:-1]:
            numbers.append(len(steps))
        ids = [*(step.options["task_id"] for step in self.tasks), ""]
        shape = [{"id": step_id, "after": numbers} for step_id, numbers in zip(ids, after, strict=True)]
        with client.pipeline() as pipe:
            pipe.hset(key, mapping={"steps": json.dumps(shape), "last": len(steps)})
            pipe.expire(key, int(2 * load().keep_results_s))
            pipe.execute()
        return False

    @staticmethod
    def _begin(key: str, run_id: str) -> None:
        keys = (key, f"{key}:ready", run_key(run_id))
        app.backend.client.eval(_BEGIN, len(keys), *keys, app.backend.task_keyprefix.decode())


class GraphTask(BaseTask):
    """A task that can be a step of a graph: it does not begin when its run has failed meanwhile."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body, unless the run has ended badly: the step waits then, and starts if the run is opened again."""
        if (graph := getattr(self.request, GRAPH_HEADER, None)) and not self.backend.patiently(self._may_begin, *graph):
            logger.info("task %s is not run: its run has ended", self.request.id)
            raise Ignore
        return super().__call__(*args, **kwargs)

    def _may_begin(self, key: str, number: int) -> bool:
        keys = (key, f"{key}:ready", run_key(getattr(self.request, RUN_HEADER)))
        return bool(self.backend.client.eval(_TURN, 3, *keys, number, int(load().keep_results_s)))


def ids_before(request: Any) -> list[str]:
    """For the last step of a graph: the ids of all others, in their order."""
    key, _ = getattr(request, GRAPH_HEADER)
    steps = json.loads(app.backend.patiently(app.backend.client.hget, key, "steps"))
    return [step["id"] for step in steps[:-1]]


def ended_commands(
    task_id: str, celery_state: str, result: Any, traceback: str | None, request: Any
) -> Iterator[Command]:
    """What the end of a step means to its graph; it goes to the broker together with the step's result."""
    graph = getattr(request, GRAPH_HEADER, None)
    if graph is None or celery_state not in _ENDS:
        return
    key, number = graph
    keys = (key, f"{key}:ready", run_key(getattr(request, RUN_HEADER)))
    tolerated = int(bool(getattr(request, TOLERATED_HEADER, None)))
    prefix, keep_s = app.backend.task_keyprefix.decode(), int(load().keep_results_s)
    yield ["EVAL", _ENDED, len(keys), *keys, number, celery_state, tolerated, prefix, keep_s]


def _first(canvas: Signature) -> Signature:
    while isinstance(canvas, _chain):
        canvas = canvas.tasks[0]
    return canvas


if ended_commands not in ResultBackend.recorders:
    # After the recorder of runs: it goes by whether the run has ended.
    ResultBackend.recorders.append(ended_commands)
