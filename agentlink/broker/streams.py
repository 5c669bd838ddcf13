"""What a run's steps say while they run, as the broker keeps it: a stream a run, and how far each step has come.

An entry of the stream holds all that one step has said in a moment, as a JSON list of `[kind, seconds since 1970,
data]`. The order of the stream is the order in which the broker was told. It lives as long as the run.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import redis

from agentlink.broker.calls import DELIVERIES_HEADER, EVICTED_HEADER
from agentlink.broker.cancelled import RUN_HEADER
from agentlink.broker.lease import IN_FLIGHT_PREFIX
from agentlink.broker.results import in_flight

#: The prefix of all keys of a run.
RUN_PREFIX = "agentlink:run:"
#: Kinds of what is said: a part of the step's output, and a line of its log.
EMIT, LOG = "emit", "log"

_TELL = resources.files(__package__).joinpath("scripts", "tell.lua").read_text("utf-8")
_MESSAGE_MAX_CHARS = 500


def stream_key(run_id: str) -> str:
    """The key of what a run's steps have said."""
    return f"{RUN_PREFIX}{run_id}:stream"


def told_key(run_id: str) -> str:
    """The key of how far a run's steps have come."""
    return f"{RUN_PREFIX}{run_id}:told"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """One attempt of a step, as the broker tells it from every other."""

    run_id: str
    #: The step's id; a slash and a number follow where others have replaced themselves by this one.
    step: str
    task: str
    attempt: int
    worker: str = ""
    #: The number of the step's message in flight with that worker; empty where it is acknowledged already.
    number: str = ""
    token: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What goes to the broker in one step. `number` counts from 1, and is the same each time it is tried."""

    number: int
    items: Sequence[str]
    fraction: float | None
    message: str | None
    #: Whether a part of the step's output is among the items: that must arrive.
    must_arrive: bool


def speaker_of(request: Any, task: str, *, late: bool) -> Speaker | None:
    """The speaker for a task's request; None of one that belongs to no run.

    `late` tells that the task's message is acknowledged when it has ended.
    """
    if request.called_directly or request.is_eager:
        return None

    def header(name: str) -> Any:
        return getattr(request, name, None)

    if (run_id := run_of(header)) is None:
        return None
    worker, number = in_flight(request) if late else ("", "")
    replacements = request.replaced_task_nesting
    return Speaker(
        run_id=run_id,
        step=f"{request.id}/{replacements}" if replacements else request.id,
        task=task,
        attempt=attempt_of(header),
        worker=worker,
        number=number,
    )


def run_of(header: Callable[[str], Any]) -> str | None:
    """The run that a task is a step of, by its message's headers; None of one that belongs to no run."""
    run_id: str | None = header(RUN_HEADER) or header("root_id")
    in_a_run = header(RUN_HEADER) or run_id != header("id") or header("replaced_task_nesting")
    return run_id if run_id and in_a_run else None


def attempt_of(header: Callable[[str], Any]) -> int:
    """Which attempt a task's message is, from 1: errors, deaths of its process and evictions add up."""
    evictions, _ = header(EVICTED_HEADER) or (0, 0)
    attempt: int = 1 + (header("retries") or 0) + (header(DELIVERIES_HEADER) or 0) + evictions
    return attempt


def tell(client: redis.Redis, speaker: Speaker, said: Said, max_bytes: int) -> str:
    """Add to a run's stream; what the script says."""
    keys = [
        RUN_PREFIX + speaker.run_id,
        stream_key(speaker.run_id),
        told_key(speaker.run_id),
        IN_FLIGHT_PREFIX + speaker.worker,
    ]
    args: list[str | bytes | int] = [
        speaker.number,
        speaker.step,
        speaker.task,
        speaker.attempt,
        speaker.token,
        said.number,
        f"[{','.join(said.items)}]" if said.items else "",
        "" if said.fraction is None else f"{said.fraction:.6f}",
        (said.message or "")[:_MESSAGE_MAX_CHARS].encode("utf-8", "backslashreplace"),
        f"{time.time():.3f}",
        max_bytes,
    ]
    outcome: bytes | str = client.register_script(_TELL)(keys=keys, args=args)
    return outcome.decode() if isinstance(outcome, bytes) else outcome


def item(kind: str, data_json: str) -> str:
    """One thing that is said, as it stands in an entry."""
    return f"[{json.dumps(kind)},{time.time():.3f},{data_json}]"
