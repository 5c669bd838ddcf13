"""`wait_for`: a step that waits for a person or the outside, for days if need be, and holds nothing meanwhile.

The step's body asks the broker in one script whether its signal, or its time, has come. If not, that script takes the
message from what the worker has in flight and puts it among the delayed ones, until its time is over or a signal calls
it back: the worker keeps nothing of it, no process and no attempt. Killed before the script, the step is run again as
any other; killed after it, the message is where it belongs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from importlib import resources
from typing import Any

from celery.canvas import Signature
from celery.exceptions import Ignore
from kombu.utils.json import loads
from redis.commands.core import Script

from agentlink.broker import fanout
from agentlink.broker.calls import Command
from agentlink.broker.cancelled import RUN_HEADER
from agentlink.broker.event_log import EVENTS
from agentlink.broker.lease import DELAYED_PREFIX, IN_FLIGHT_PREFIX, STARTED_PREFIX, WAKE_PREFIX
from agentlink.broker.results import ResultBackend, in_flight
from agentlink.broker.transport import Channel
from agentlink.settings import load
from agentlink.units import checked_name, parse_duration
from tasks.app import task
from workflows.errors import CallRefused, RunUnknown, SignalTimedOut
from workflows.plan import replacement
from workflows.signals import GOES_ON, INDEX_KEY, line_key, parked_key, signals_key, waits_key
from workflows.states import STEP_TRANSITIONS, StepState
from workflows.store import as_text, run_key, steps_key

logger = logging.getLogger(__name__)

_PARK = EVENTS + resources.files(__package__).joinpath("park.lua").read_text("utf-8")
_WAITED = resources.files(__package__).joinpath("waited.lua").read_text("utf-8")

#: What has no end is kept for so long.
_FOR_EVER_S = 10 * 366 * 86400
# A step that waits asks again several times in the time that results are kept: what it will need is kept on then, also
# what came to be, or was given a shorter life, after it had begun to wait.
_ASKS_A_LIFE = 4
_WAITS_FROM = [state for state, after in STEP_TRANSITIONS.items() if StepState.WAITING in after]
_PROMPT_MAX_CHARS = 2_000


def wait_for(
    name: str | None = None,
    *,
    timeout: str | float | None = None,
    on_timeout: Signature | None = None,
    prompt: str = "",
) -> Signature:
    """A step that waits until somebody sends its run the signal `name`; its result is the signal's payload.

    `run.signal(name, payload)` or `agentlink signal` does. Each signal goes to one step, the one that has waited for it
    longest; one that comes before any step waits for it is kept. `prompt` is what people are asked. When `timeout`
    (`"2d"`) is over, `on_timeout` goes on in the step's place, or else the step fails with `SignalTimedOut`. Without a
    name it is a timer: no signal ends it, and it does not fail. It gets nothing from the step before.

    Raises:
        ValueError: what was given and what would be right.
    """
    timeout_s = None if timeout is None else parse_duration(timeout)
    if timeout_s is None and (checked_name(name) is None or on_timeout is not None):
        raise ValueError("want a timeout where there is no signal's name to wait for, and where there is an on_timeout")
    return _waits.si(checked_name(name), timeout_s=timeout_s, on_timeout=on_timeout, prompt=prompt[:_PROMPT_MAX_CHARS])


def sleep_for(duration: str | float) -> Signature:
    """A step that waits for some time (`"2h"`) and holds nothing meanwhile; its result is None.

    Raises:
        ValueError: what was given and what would be right.
    """
    return wait_for(timeout=duration)


# It does nothing that a process could die of: however often one does, it is not to blame.
@task(name="workflows.wait_for", bind=True, acks_late=True, max_attempts=1_000)
def _waits(self: Any, name: str | None, *, timeout_s: float | None, on_timeout: Any, prompt: str) -> Any:
    """Ask whether it has come; put the message aside if not."""
    if self.request.called_directly or self.request.is_eager:
        raise CallRefused(self.name, "only a step of a run can wait: start the workflow by delay()")
    said, payload = ask(self, name, timeout_s, prompt, instead=on_timeout is not None)
    if said == "unknown":
        raise RunUnknown(run_of(self.request))
    if said == "signalled":
        return loads(payload)
    if said == "forgotten":
        logger.info("task %s waited for %r in a run that is forgotten", self.request.id, name)
    if said == "ended":
        self.backend.mark_as_revoked(self.request.id, "its run has ended", request=self.request)
    if said != "timed out":
        raise Ignore
    if on_timeout is not None:
        raise self.replace(replacement(on_timeout, self.request.id, self.app))
    if name is not None:
        raise SignalTimedOut(name, timeout_s or 0.0)
    return None


def ask(task: Any, name: str | None, timeout_s: float | None, prompt: str, *, instead: bool) -> tuple[str, str]:
    """Ask the broker, in the body of a task that waits: what `park.lua` says, and the payload, if any."""
    request, backend, settings = task.request, task.backend, load()
    run_id, (worker, number) = run_of(request), in_flight(request)
    root_id = request.root_id or run_id
    keys = [
        *(of(run_id) for of in (run_key, steps_key, waits_key, parked_key, line_key, signals_key)),
        INDEX_KEY,
        IN_FLIGHT_PREFIX + worker,
        STARTED_PREFIX + worker,
        fanout.tree_key(root_id),
    ]
    args = [
        request.id,
        name or "",
        prompt,
        "" if timeout_s is None else int(timeout_s * 1000),
        "1" if instead else "",
        number,
        int(settings.keep_results_s / _ASKS_A_LIFE * 1000),
        int(2 * settings.keep_results_s),
        _FOR_EVER_S,
        json.dumps([GOES_ON, _WAITS_FROM, [as_text(key) for key in _needed_later(request, backend)]]),
        run_key(""),
        DELAYED_PREFIX,
        WAKE_PREFIX,
        Channel.sep,
    ]
    client = backend.client
    said, *payload = backend.patiently(lambda: Script(client, _PARK)(keys=keys, args=args, client=client))
    return as_text(said), as_text(payload[0]) if payload else ""


def run_of(request: Any) -> str:
    """The run that a task is a step of."""
    run_id: str = getattr(request, RUN_HEADER, None) or request.root_id or request.id
    return run_id


def _needed_later(request: Any, backend: Any) -> Iterator[Any]:
    """The keys of results, and of chords that are joined some time after this step, however far ahead."""
    yield from {backend.get_key_for_task(task_id) for task_id in (request.id, run_of(request))}
    for group_id in {request.group, *_groups_in([request.chain, request.chord, request.callbacks])} - {None}:
        for part in ("", ".j", ".t", ".s", ".d"):
            yield backend.get_key_for_group(group_id, part)


def _groups_in(canvas: Any) -> Iterator[str]:
    """The ids of the groups that signatures, as JSON, are members of."""
    if isinstance(canvas, dict):
        if isinstance(group_id := canvas.get("group_id"), str) and group_id:
            yield group_id
        canvas = list(canvas.values())
    if isinstance(canvas, list):
        for part in canvas:
            yield from _groups_in(part)


def ended_commands(
    task_id: str, celery_state: str, result: Any, traceback: str | None, request: Any
) -> Iterable[Command]:
    """What forgets what a step has waited for, together with the storing of its result."""
    waited = getattr(request, "task", None) == _waits.name and not getattr(request, "is_eager", False)
    if not waited or celery_state not in ("SUCCESS", "FAILURE", "REVOKED"):
        return
    run_id = run_of(request)
    keys = [*(of(run_id) for of in (run_key, steps_key, waits_key, parked_key, line_key)), INDEX_KEY]
    succeeded = "1" if celery_state == "SUCCESS" else ""
    yield ["EVAL", _WAITED, len(keys), *keys, task_id, run_id, succeeded, int(2 * load().keep_results_s)]


if ended_commands not in ResultBackend.recorders:
    ResultBackend.recorders.append(ended_commands)
