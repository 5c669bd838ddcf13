"""Signals to runs, and what the steps of runs wait for. This file knows their keys.

A signal is a name and a JSON payload. It goes to one step, in the script that sends it: the payload is written down as
that step's, and the step's message, which was put aside, goes to the head of its queue. What no step waits for yet is
kept in the order in which it came.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import redis
from kombu.utils.json import dumps
from kombu.utils.uuid import uuid
from redis.commands.core import Script

from agentlink.broker.errors import BrokerUnavailable, reason_of
from agentlink.broker.event_log import EVENTS
from agentlink.broker.lease import TURNS, WAKE_PREFIX
from agentlink.broker.transport import Channel
from agentlink.settings import load
from agentlink.units import checked_name, format_size, shown
from workflows.errors import RunEnded, RunUnknown, TooManySignals
from workflows.states import RUN_TRANSITIONS, TERMINAL_RUN_STATES, RunState
from workflows.store import as_text, run_key

#: The runs in which something waits, by since when.
INDEX_KEY = "agentlink:waiting"
#: The most signals kept for a run that no step has waited for yet.
KEEP_SIGNALS = 1_000
PAYLOAD_MAX_BYTES = 1_000_000
#: The states in which a run goes on.
GOES_ON = [state for state in RUN_TRANSITIONS if state not in TERMINAL_RUN_STATES]

# How long the broker remembers what it said to a call, in case its answer got lost.
_REMEMBER_S = 300
# Of the time a caller waits for an answer, the share in which the broker may still do what it is asked.
_ACCEPT_FRACTION = 0.75
_RETRY_S = 0.1
_SIGNAL = TURNS + EVENTS + resources.files(__package__).joinpath("signal.lua").read_text("utf-8")


@dataclass(frozen=True, kw_only=True)
class Wait:
    """A step that waits. Times are seconds since 1970."""

    run_id: str
    step_id: str
    #: The signal it waits for; None where it waits for its time alone.
    name: str | None
    #: What a person is asked, if anything.
    prompt: str
    since: float
    #: When its time is over; None: never.
    until: float | None


def waits_key(run_id: str) -> str:
    """The key of what a run's steps wait for: step → JSON, with the payload of the signal that each has been given."""
    return f"{run_key(run_id)}:waits"


def parked_key(run_id: str) -> str:
    """The key that tells where the messages of steps that wait are."""
    return f"{run_key(run_id)}:parked"


def line_key(run_id: str) -> str:
    """The key of the steps that wait for signals, in the order in which they get them."""
    return f"{run_key(run_id)}:line"


def signals_key(run_id: str) -> str:
    """The key of the signals that no step has waited for yet."""
    return f"{run_key(run_id)}:signals"


def send(client: redis.Redis, run_id: str, name: str, payload: Any = None, *, to_all: bool = False) -> int:
    """Give a signal to the step that has waited for it longest, or to all that wait for it now; return how many got it.

    With 0, it is kept for the first step that will wait for it.

    Raises:
        RunUnknown, RunEnded, TooManySignals: nothing was done.
        BrokerUnavailable: the broker did not answer in time; what it has not done by then it will not do.
        ValueError: it is no name, or no payload; it says what would be one.
    """
    if checked_name(name) is None:
        raise ValueError("want a signal's name, got None")
    encoded = _encoded(payload)
    settings = load()
    keys = [of(run_id) for of in (run_key, waits_key, parked_key, line_key, signals_key)]
    args = [
        name,
        encoded,
        "1" if to_all else "",
        json.dumps(GOES_ON),
        KEEP_SIGNALS,
        int(2 * settings.keep_results_s),
        _REMEMBER_S,
        WAKE_PREFIX,
        Channel.sep,
    ]
    said = _said(client, [*keys, f"agentlink:sent:{uuid()}"], args)
    if said == "unknown":
        raise RunUnknown(run_id)
    if said == "full":
        raise TooManySignals(run_id, KEEP_SIGNALS)
    if not said.isdigit():
        raise RunEnded(run_id, said)
    return int(said)


def waits_of(client: redis.Redis, run_ids: Sequence[str]) -> list[Wait]:
    """What the steps of these runs wait for, the one that has waited longest first; nothing where a run has ended."""
    with client.pipeline(transaction=False) as pipe:
        for run_id in run_ids:
            pipe.hget(run_key(run_id), "state")
            pipe.hgetall(waits_key(run_id))
        answers = pipe.execute()
    waits = [
        wait
        for run_id, state, facts in zip(run_ids, answers[::2], answers[1::2], strict=True)
        if state and RunState(as_text(state)) not in TERMINAL_RUN_STATES
        for wait in _decode(run_id, facts.items())
    ]
    return sorted(waits, key=lambda wait: (wait.since, wait.step_id))


def which_wait(client: redis.Redis, run_ids: Sequence[str]) -> set[str]:
    """Of these runs, those in which a step waits, or did when they ended."""
    since = client.zmscore(INDEX_KEY, list(run_ids)) if run_ids else []
    return {run_id for run_id, at in zip(run_ids, since, strict=True) if at is not None}


def all_waits(client: redis.Redis) -> list[Wait]:
    """What all runs wait for, the step that has waited longest first."""
    runs: list[bytes | str] = client.zrange(INDEX_KEY, 0, -1)  # type: ignore[assignment]  # no scores asked for
    return waits_of(client, [as_text(run_id) for run_id in runs])


def _said(client: redis.Redis, keys: list[str], args: list[Any]) -> str:
    """What `signal.lua` says, however often it has to be asked: it does what it is asked once, and in time."""
    settings, script = load(), Script(client, _SIGNAL)
    accept_s = _ACCEPT_FRACTION * (client.connection_pool.connection_kwargs.get("socket_timeout") or _REMEMBER_S)
    ends_at = time.monotonic() + settings.publish_timeout_s
    while True:
        try:
            seconds, microseconds = client.time()
            latest_ms = int((seconds + microseconds / 1e6 + accept_s) * 1000)
            said = as_text(script(keys=keys, args=[latest_ms, *args], client=client))
        except (redis.TimeoutError, redis.ConnectionError) as error:
            if time.monotonic() >= ends_at:
                raise BrokerUnavailable(settings.shown_url, reason_of(error)) from error
        except redis.ResponseError as error:
            raise BrokerUnavailable(settings.shown_url, reason_of(error)) from error
        else:
            if said != "late":
                return said
            if time.monotonic() >= ends_at:
                raise BrokerUnavailable(settings.shown_url, "it came to the call too late")
        time.sleep(_RETRY_S)


def _encoded(payload: Any) -> str:
    try:
        encoded: str = dumps(payload)
    except (TypeError, ValueError) as error:
        raise ValueError(f"want a payload that JSON can tell, got {shown(payload)}: {error}") from None
    if len(encoded) > PAYLOAD_MAX_BYTES:
        size, most = format_size(len(encoded)), format_size(PAYLOAD_MAX_BYTES)
        raise ValueError(f"want a payload of {most} at most, got one of {size}: keep it in a file and send its name")
    return encoded


def _decode(run_id: str, facts_by_step: Iterable[tuple[bytes | str, bytes | str]]) -> Iterable[Wait]:
    for step_id, value in facts_by_step:
        facts = json.loads(value)
        if "payload" in facts or "timed_out" in facts:
            continue  # it has what it waited for
        yield Wait(
            run_id=run_id,
            step_id=as_text(step_id),
            name=facts["name"] or None,
            prompt=facts["prompt"],
            since=float(facts["since"]),
            until=int(facts["until_ms"]) / 1000 if "until_ms" in facts else None,
        )
