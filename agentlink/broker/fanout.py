"""How many steps one call may lead to: what a message counts for, and the errors of those that are too many.

All that one call from outside leads to is one tree: the steps its run has planned, the tasks and runs that its steps
start, theirs in turn. Celery gives each of them the same root id; a hash and a set in the broker count them. Where an
agent has made the call, all its trees are counted together too. They are written in the scripts that queue messages,
record a canvas or store a result: counting costs no round trip. What is too much is refused in the same scripts, so
that steps which ask at the same time can't overshoot a cap together; only what comes next in canvases that were
accepted goes beyond it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from celery._state import _set_task_join_will_block
from kombu.utils.uuid import uuid

from agentlink.errors import AgentLinkError
from agentlink.settings import load
from agentlink.units import checked_name, shown

#: The message header that tells how deep a task is: 1 without it, one more than the task in whose body it was started.
#: A message that has it is counted.
DEPTH_HEADER = "agentlink_depth"
#: The message property that carries what a message counts for.
TALLY = "agentlink_tally"
TREE_PREFIX = "agentlink:tree:"
AGENT_PREFIX = "agentlink:agent:"
#: The call option that names the agent a call from outside is made for, where it is not the one of the settings.
AGENT = "agent"

#: Lua that stands before the scripts that count.
COUNTING = resources.files(__package__).joinpath("scripts", "fanout.lua").read_text("utf-8")

_IN_BODY = "agentlink_in_body"
_GOES_ON = "agentlink_goes_on"

_SETTINGS = {
    "depth": "max_depth",
    "live": "max_steps_live",
    "steps": "max_steps",
    "agent_live": "max_agent_steps_live",
    "agent_steps": "max_agent_steps",
}


class FanOutExceeded(AgentLinkError):
    """More steps than one run, all it has started included, or one agent may have; nothing of what asked was accepted.

    `cap` is `depth` (steps that start steps), `live` (steps that have not ended), `steps` (all there ever were), or
    `agent_live` or `agent_steps` (the same over all that the agent `agent` has called). `run_id` is the run called from
    outside, or the task. `wanted` is what there would be then.
    """

    def __init__(self, run_id: str, cap: str, limit: int, wanted: int, agent: str | None = None) -> None:
        super().__init__(run_id, cap, limit, wanted, agent)
        self.run_id, self.cap, self.limit, self.wanted, self.agent = run_id, cap, limit, wanted, agent

    @property
    def setting(self) -> str:
        """What raises the limit."""
        return f"AGENTLINK_{_SETTINGS[self.cap].upper()}"

    def __str__(self) -> str:
        if self.cap == "depth":
            what = f"steps that start steps would be {self.wanted} deep in run {self.run_id}"
            remedy = "let a task that starts itself go on by `self.replace(...)` or `self.retry(...)`"
        else:
            which = "steps that have not ended" if self.cap.endswith("live") else "steps in all"
            whose = f"run {self.run_id}, with what it has started,"
            if self.agent is not None:
                whose = f"with run {self.run_id} agent {shown(self.agent)}"
            what = f"{whose} would have {self.wanted} {which}"
            remedy = "wait until some have ended" if self.cap == "agent_live" else "give each step more to do"
        return f"{what}, and {self.limit} is the most: {remedy}, or raise {self.setting}"


class WaitsForSteps(AgentLinkError):
    """A task asked for a result that is not there yet: it would hold its process while what it waits for needs one.

    Two parents with two processes would wait for ever for children that have none. Refused rather than helped by
    lending the process out: a function can't be set aside in its middle, and its memory stays taken. A task that ends,
    and is gone on with when the others have ended, costs nothing meanwhile.
    """

    def __init__(self, task: str, waits_for: str) -> None:
        super().__init__(task, waits_for)
        self.task, self.waits_for = task, waits_for

    def __str__(self) -> str:
        return (
            f"{self.task} can't wait for the result of {self.waits_for}: it would keep its process from the tasks it "
            "waits for. Let another task go on with the result: `raise self.replace(chain(child.s(), rest.s()))`, or a "
            "chord for several; `ready()` tells whether `get()` may be called"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """One task that is sent, as its tree counts it."""

    root_id: str
    task_id: str
    #: Whether it can be refused. What comes next in a canvas can't be: that was accepted, and it is finite.
    refusable: bool
    #: The agent that has made the call; None: none, or the one its tree is known to belong to.
    agent: str | None = None


def tree_key(root_id: str) -> str:
    """The key of what a tree is counted in."""
    return TREE_PREFIX + root_id


def agent_key(agent: str) -> str:
    """The key of what an agent's steps are counted in."""
    return AGENT_PREFIX + agent


def counting_arguments(root_id: str, wanted: int, sent: Sequence[Tally] = ()) -> str:
    """JSON for the scripts: what to count in a tree, unless so many more would be too many (0: then too).

    What is sent may belong to several trees when an agent calls from outside; then only its own caps may refuse it.
    """
    settings = load()
    ids_by_tree: dict[str, list[str]] = {}
    for tally in sent:
        ids_by_tree.setdefault(tree_key(tally.root_id), []).append(tally.task_id)
    agent = sent[0].agent if sent else None
    facts = {
        "tree": tree_key(root_id),
        "sent": ids_by_tree,
        "apart": len(ids_by_tree) > 1,
        "wanted": wanted,
        "max_steps": settings.max_steps,
        "max_live": settings.max_steps_live,
        "max_agent_steps": settings.max_agent_steps,
        "max_agent_live": settings.max_agent_steps_live,
        "keep_s": int(2 * settings.keep_results_s),
    }
    return json.dumps(facts | ({"agent": agent_key(agent)} if agent is not None else {}))


def exceeded(root_id: str, refusal: list[Any]) -> FanOutExceeded:
    """The error for what a counting script has refused."""
    cap, wanted, *of = (part.decode() if isinstance(part, bytes) else part for part in refusal)
    agent = of[0].removeprefix(AGENT_PREFIX) if of else None
    return FanOutExceeded(root_id, cap, getattr(load(), _SETTINGS[cap]), int(wanted), agent)


def checked_depth(root_id: str, depth: int) -> int:
    """The depth itself.

    Raises:
        FanOutExceeded: it is too deep.
    """
    if depth > load().max_depth:
        raise FanOutExceeded(root_id, "depth", load().max_depth, depth)
    return depth


def checked_breadth(tally: Tally, steps: int) -> None:
    """Don't gather for ever what could not be accepted anyway.

    Raises:
        FanOutExceeded: at once there are more steps than may be live.
    """
    cap = "live" if tally.agent is None else "agent_live"
    limit = getattr(load(), _SETTINGS[cap])
    if steps > limit:
        raise FanOutExceeded(tally.root_id, cap, limit, steps, tally.agent)


def depth_of(request: Any) -> int:
    """How deep a task is; 1 when it was called from outside."""
    return getattr(request, DEPTH_HEADER, None) or 1


def is_counted(request: Any) -> bool:
    """Whether a task counts in a tree: one called from outside does not."""
    return getattr(request, DEPTH_HEADER, None) is not None


@contextlib.contextmanager
def body(request: Any) -> Iterator[None]:
    """A task's own code runs inside: what it sends is new, and can be refused."""
    # Celery's own check can't know whether the result is there, nor say what to do instead: ours does both.
    _set_task_join_will_block(False)
    setattr(request, _IN_BODY, True)
    try:
        yield
    finally:
        setattr(request, _IN_BODY, False)


@contextlib.contextmanager
def replacing(request: Any) -> Iterator[None]:
    """A task sends inside what goes on in its place: no deeper than it is itself."""
    setattr(request, _GOES_ON, True)
    try:
        yield
    finally:
        setattr(request, _GOES_ON, False)


def is_in_body(request: Any) -> bool:
    """Whether a task's own code runs."""
    return bool(getattr(request, _IN_BODY, False))


def count_call(options: dict[str, Any]) -> None:
    """Have a message from outside counted, should it come from an agent: change the options of its call."""
    agent = options.pop(AGENT, load().agent)
    if agent is None:
        return
    task_id = options.get("task_id") or uuid()
    tally = Tally(root_id=options.get("root_id") or task_id, task_id=task_id, refusable=True, agent=checked_name(agent))
    headers = (options.get("headers") or {}) | {DEPTH_HEADER: 1}
    options |= {"headers": headers, "task_id": task_id, TALLY: tally}


def count(request: Any, options: dict[str, Any]) -> None:
    """Have a message that a task sends counted: change the options of its call.

    Raises:
        FanOutExceeded: it would be too deep. (Whether it is one too many is found out in the broker.)
    """
    options.pop(AGENT, None)  # it belongs to whatever its tree belongs to
    headers = options.get("headers") or {}
    in_body = is_in_body(request)
    if DEPTH_HEADER in headers or options.get("retries") or not (in_body or is_counted(request)):
        return  # counted already: planned, or another attempt; or it comes after a task that was called from outside
    root_id, depth = request.root_id or request.id, depth_of(request)
    if in_body and not getattr(request, _GOES_ON, False):
        depth = checked_depth(root_id, depth + 1)
    task_id = options.get("task_id") or uuid()
    tally = Tally(root_id=root_id, task_id=task_id, refusable=in_body)
    options |= {"headers": headers | {DEPTH_HEADER: depth}, "task_id": task_id, TALLY: tally}
