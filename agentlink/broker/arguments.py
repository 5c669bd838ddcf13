"""Arguments too large for a message: they are kept in files, once for all messages that share them.

What a message carries in such an argument's place is a `Reference`: of each argument, of what is in a list that is one
(the results a chord has joined), and of the arguments of what comes after the task (its chain, its chord's body, its
callbacks; errbacks stay whole, since Celery calls some of them where the task has failed). In JSON it is a type of its
own, as kombu's dates are: no value of a user's is taken for one. A header tells which values a message refers to.

The file belongs to the message's run, as a step's result does; outside any run it is held by the task itself until that
has ended. Both are said to the broker in the step that queues the message.
"""

from __future__ import annotations

import marshal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import redis
from celery import states
from kombu.utils.json import dumps, register_type

from agentlink.broker import sweep_step
from agentlink.broker.calls import Command
from agentlink.settings import load
from resource_guard.large_values import Reference, is_longer

#: The message header that lists the digests of all that the message refers to.
ARGUMENTS_HEADER = "agentlink_arguments"
#: The ids that a stored value belongs to, those of runs above all: a set, by the value's digest.
RUNS_PREFIX = "agentlink:stored:"
#: Tells that a task outside any run, or a dead letter, is still to have its arguments.
WAITS_PREFIX = "agentlink:waits:"

# So deep are lists looked through for what is large by itself: a chord may join the results of groups.
_LISTS_DEEP = 2
# Of longer lists no member is stored by itself.
_SINGLY_MAX = 1_000
_SCALARS = frozenset({int, float, bool, type(None)})
_LISTS = frozenset({list, tuple})
_CONTAINERS = frozenset({list, tuple, dict, str, bytes})
# JSON of plain values has no more characters for a byte that `marshal` writes ten times as fast: eight for empty bytes.
_JSON_PER_MARSHAL = 8
# Up to so many times the limit the exact length is found by making the JSON; of more, looking at a part is faster.
_WORTH_MAKING = 4
# Where a canvas, sent as a part of a message, has others.
_CANVASES = {"chain": ("tasks",), "group": ("tasks",), "chord": ("header", "body")}
_AFTER = ("link", "chain", "chord")

register_type(
    Reference,
    "agentlink_argument",
    lambda reference: [reference.digest, reference.size_bytes],
    lambda parts: Reference(digest=parts[0], size_bytes=parts[1]),
)


@dataclass(frozen=True, slots=True)
class Kept:
    """A value that has been stored: the value itself, so that no other gets its identity, and what stands for it."""

    value: Any
    reference: Reference
    #: What the stored value refers to in turn.
    within: dict[str, Reference]


#: What has been stored, by identity: for as long as no code of a user's runs that could change a value.
Seen = dict[int, Kept]


@dataclass
class Claims:
    """One message's arguments, with references in place of what is large, and all that they refer to, by digest."""

    keep: Callable[[Any], Reference]
    seen: Seen
    inline_bytes: int
    #: Whether what is large in a list is stored by itself: not of a result that is handed on, which is stored whole.
    singly: bool = True
    found: dict[str, Reference] = field(default_factory=dict)

    def value(self, value: Any, deep: int = _LISTS_DEEP) -> Any:
        """The value itself, or what is to travel in its place."""
        if type(value) in _SCALARS or (type(value) is str and 12 * len(value) < self.inline_bytes):
            return value
        if isinstance(value, Reference):
            self.found[value.digest] = value
            return value
        if (kept := self.seen.get(id(value))) is not None:
            return self._known(kept)
        if _fits(value, self.inline_bytes):
            return value
        inner = Claims(self.keep, self.seen, self.inline_bytes, self.singly)
        parted = inner._members(value, deep - 1) if type(value) in _LISTS and deep else value
        try:
            if is_longer(parted, self.inline_bytes, dumps):
                kept = self.seen[id(value)] = Kept(value, self.keep(parted), inner.found)
                return self._known(kept)
        except (TypeError, ValueError):
            return value  # JSON can't have it: kombu says so, in its own words, when it comes to it
        self.found |= inner.found
        return parted

    def values(self, values: Sequence[Any]) -> Sequence[Any]:
        """Positional arguments."""
        return _unless_same(values, [self.value(value) for value in values])

    def named(self, values: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments."""
        changed = {name: self.value(value) for name, value in values.items()}
        return changed if any(changed[name] is not value for name, value in values.items()) else values

    def after(self, options: dict[str, Any]) -> dict[str, Any]:
        """Those of a call's options, or a signature's, in which something comes after the task, where they change."""
        changed = {name: self._canvas(options[name]) for name in _AFTER if options.get(name)}
        return {name: canvas for name, canvas in changed.items() if canvas is not options[name]}

    def _known(self, kept: Kept) -> Reference:
        self.found |= kept.within
        self.found[kept.reference.digest] = kept.reference
        return kept.reference

    def _members(self, members: Sequence[Any], deep: int) -> Sequence[Any]:
        if self.singly and len(members) <= _SINGLY_MAX:
            return _unless_same(members, [one if type(one) in _SCALARS else self.value(one, deep) for one in members])
        self._look_for_references(members, deep)
        return members

    def _look_for_references(self, members: Sequence[Any], deep: int) -> None:
        for one in members:
            if type(one) is Reference:
                self.found[one.digest] = one
            elif type(one) in _LISTS and deep:
                self._look_for_references(one, deep - 1)

    def _canvas(self, node: Any) -> Any:
        """A signature, or a list of some."""
        if isinstance(node, (list, tuple)):
            return _unless_same(node, [self._canvas(one) for one in node])
        if not isinstance(node, dict) or "options" not in node:
            return node
        kind, kwargs = node.get("subtask_type"), node.get("kwargs") or {}
        if kind in _CANVASES:
            parts = {name: self._canvas(kwargs[name]) for name in _CANVASES[kind] if kwargs.get(name)}
            changed = any(part is not kwargs[name] for name, part in parts.items())
            kwargs_now = kwargs | parts if changed else kwargs
        else:
            kwargs_now = self.named(kwargs)
        args = node.get("args") or ()
        args_now, options = self.values(args), self.after(node["options"])
        if args_now is args and kwargs_now is kwargs and not options:
            return node
        return dict(node) | {"args": args_now, "kwargs": kwargs_now, "options": dict(node["options"]) | options}


def _fits(value: Any, inline_bytes: int) -> bool:
    """Whether a value of plain types is small; False where that takes a closer look. No slower than making its JSON."""
    if type(value) in _CONTAINERS and len(value) > inline_bytes:
        return False
    try:
        size = len(marshal.dumps(value, 2))  # later versions write what is in it twice but once
        return size * _JSON_PER_MARSHAL <= inline_bytes or (
            size <= _WORTH_MAKING * inline_bytes and len(dumps(value)) <= inline_bytes
        )
    except (TypeError, ValueError):  # there is a reference in it, a date, or what JSON can't have
        return False


def _unless_same(before: Sequence[Any], after: list[Any]) -> Sequence[Any]:
    return after if any(one is not other for one, other in zip(before, after, strict=True)) else before


def belong(digests: Iterable[str], ids: Sequence[str]) -> list[Command]:
    """What says that stored values belong to these runs or tasks."""
    keep_s = int(2 * load().keep_results_s)
    keys = [RUNS_PREFIX + digest for digest in digests]
    return [command for key in keys for command in (["SADD", key, *ids], ["EXPIRE", key, keep_s])]


def held(task_id: str, for_s: float) -> Command:
    """What says that a task is still to have its arguments, for so long at most."""
    return ["SET", WAITS_PREFIX + task_id, "", "EX", int(for_s)]


def delay_s(options: dict[str, Any]) -> float:
    """How long a call with these options waits for its time."""
    eta = options.get("eta")
    if eta is None:
        return float(options.get("countdown") or 0)
    due = datetime.fromisoformat(eta) if isinstance(eta, str) else eta
    return max(0.0, (due if due.tzinfo else due.replace(tzinfo=UTC)).timestamp() - time.time())


def let_go_commands(task_id: str, state: str, result: Any, traceback: str | None, request: Any) -> Iterator[Command]:
    """A recorder: a task that has ended holds its arguments no more."""
    if state in states.READY_STATES and getattr(request, ARGUMENTS_HEADER, None):
        yield ["DEL", WAITS_PREFIX + task_id]


def which_wait(client: redis.Redis, task_ids: Sequence[str]) -> dict[str, bool]:
    """Of these ids, those of tasks that hold their arguments."""
    with client.pipeline(transaction=False) as pipe:
        for task_id in task_ids:
            pipe.exists(WAITS_PREFIX + task_id)
        answers = pipe.execute()
    return {task_id: True for task_id, waits in zip(task_ids, answers, strict=True) if waits}


if which_wait not in sweep_step.lookups:
    sweep_step.lookups.append(which_wait)
