"""What a run needs that no step of it does: to be built again, to be ended when its last step has, to be made up for.

The scripts that change runs note such errands in the broker; any worker does them, within a second. Each is done at
least once, and twice does no harm.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import redis
from celery import Celery

from agentlink.broker import chores
from agentlink.broker.chores import Chore
from agentlink.broker.errors import BrokerUnavailable, Overtaken
from workflows import compensation, ending, steering, store
from workflows.ending import ENDING, ending_facts
from workflows.errors import RunUnknown
from workflows.shape import comes_after
from workflows.states import TERMINAL_STEP_STATES, RunState, StepState
from workflows.store import ERRANDS_KEY, run_key

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
# A worker that has taken an errand has so long; then another takes it.
_DONE_WITHIN_S = 30.0
_AT_ONCE = 20
# What takes long to look at, a run of thousands of steps, is looked at so many times more seldom than that takes.
_REST = 20

#: Take an errand: KEYS[1] the errands, ARGV[1] the errand, ARGV[2] when it was seen to be due, ARGV[3] when it is then.
_TAKE = """
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0) ~= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
return 1
"""
_END = ENDING + ending.script("end_failed.lua")


def install(app: Celery) -> None:
    """Have every worker of `app` do errands. Doing it twice changes nothing."""
    chores.add(app, _errands, slow=True)


def _errands(app: Celery) -> Chore:
    def look() -> float:
        do_due(app.backend.client)
        return _LOOK_EVERY_S

    return Chore(name="doing errands", first_in_s=_LOOK_EVERY_S, do=look)


def do_due(client: redis.Redis) -> None:
    """Do the errands that are due and that nobody has taken."""
    now = time.time()
    due: list[Any] = client.zrangebyscore(ERRANDS_KEY, "-inf", now, start=0, num=_AT_ONCE)
    for errand in map(store.as_text, due):
        seen = client.zscore(ERRANDS_KEY, errand)
        if seen is not None and client.eval(_TAKE, 1, ERRANDS_KEY, errand, repr(seen), f"{now + _DONE_WITHIN_S}"):
            _do(client, errand)


def _do(client: redis.Redis, errand: str) -> None:
    word, _, run_id = errand.partition(" ")
    try:
        if word == "replay":
            steering.replay(client, run_id)
        elif word == "compensate":
            _when_none_runs(client, run_id, errand, lambda: compensation.start(client, run_id, errand))
        elif word == "end":
            _end_when_done(client, run_id, errand)
    except RunUnknown:
        client.zrem(ERRANDS_KEY, errand)
    except Overtaken:
        logger.info("run %s was resumed: nothing is made up for", run_id)
    except KeyError as error:
        logger.warning("run %s is left to another worker: this one knows no workflow %s", run_id, error)
    except (redis.RedisError, BrokerUnavailable):
        raise
    except Exception:
        logger.exception("%s: tried again in %.0f s", errand, _DONE_WITHIN_S)


def _when_none_runs(client: redis.Redis, run_id: str, errand: str, do: Any) -> None:
    """Steps that still run may succeed, and be among what is to be undone."""
    began_at = time.monotonic()
    if any(step.state is StepState.RUNNING for step in store.read_steps(client, run_id)):
        _put_off(client, errand, began_at)
    else:
        do()


def _end_when_done(client: redis.Redis, run_id: str, errand: str) -> None:
    """A step of the run has failed for good, and the others may end: it has failed when all have that can."""
    began_at, run = time.monotonic(), store.read_run(client, run_id)
    if run.state in (RunState.QUEUED, RunState.RUNNING) and _may_go_on(client, run_id):
        _put_off(client, errand, began_at)
        return
    facts = ending_facts(time.time(), run.failure, ending.failed_result(run.failure or {}))
    client.eval(_END, 2, run_key(run_id), ERRANDS_KEY, facts, errand)


def _put_off(client: redis.Redis, errand: str, began_at: float) -> None:
    pause_s = max(_LOOK_EVERY_S, _REST * (time.monotonic() - began_at))
    client.zadd(ERRANDS_KEY, {errand: time.time() + pause_s}, xx=True)


def _may_go_on(client: redis.Redis, run_id: str) -> bool:
    """Whether a step has yet to end that does not wait for one that has ended badly."""
    steps, graphs = store.read_steps(client, run_id), store.read_graphs(client, run_id)
    ended_badly = [s.numbers for s in steps if s.state in (StepState.FAILED, StepState.CANCELLED) and s.numbers]
    return any(
        step.state is StepState.RUNNING or not any(comes_after(graphs, bad, step.numbers) for bad in ended_badly)
        for step in steps
        if step.state not in TERMINAL_STEP_STATES
    )
