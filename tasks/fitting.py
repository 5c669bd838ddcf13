"""Whether the arguments of a canvas's steps fit their tasks, as far as that can be known before any of them runs.

A step at the beginning has all its arguments, and so has an immutable one. Any other gets one thing more, as its first
argument: the result of the step before it, or the list of a chord's results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from celery import Celery
from celery.canvas import Signature, _chain, _chord, group, maybe_signature

from tasks.errors import ArgumentsUnfit

_RESULT = (None,)
# What the keywords of a chain, group or chord hold when nothing was given to it as a whole.
_OWN_KEYWORDS = {"tasks", "header", "body", "kwargs"}


def check_steps(canvas: Signature, app: Celery, before: tuple[Any, ...] = ()) -> None:
    """Refuse a canvas with a step whose task can't be called as it would be; `before` is what its first step is given.

    Tasks that only other workers know can't be looked at; nor can the first steps of a chain, group or chord which was
    given arguments as a whole.

    Raises:
        ArgumentsUnfit: which step, what is wrong with its arguments, and what would fit.
    """
    for step, given in _steps(canvas, before, app):
        check = getattr(app.tasks.get(step.task), "check_arguments", None)
        if check is None or given is None:
            continue
        if step.immutable:
            given = ()
        try:
            check((*given, *step.args), step.kwargs)
        except ArgumentsUnfit as error:
            after = ", with the result of what comes before it as its first argument" if given else ""
            raise ArgumentsUnfit(f"the step {error.task}{after}", error.problem) from None


def check_what_follows(options: Mapping[str, Any], app: Celery) -> None:
    """The same for what is sent with a call: the rest of its chain; of a chord's first member, the body.

    Raises:
        ArgumentsUnfit: see `check_steps`.
    """
    following = [*reversed(options.get("chain") or ())]
    if not options.get("group_index") and (body := options.get("chord")):
        following.append(body)
    for canvas in following:
        check_steps(canvas, app, _RESULT)


def _steps(
    node: Signature, before: tuple[Any, ...] | None, app: Celery
) -> Iterator[tuple[Signature, tuple[Any, ...] | None]]:
    """Each step with what stands before its own arguments; None: that is not known."""
    node = maybe_signature(node, app=app)  # what was in a message is a plain dictionary
    if not isinstance(node, (_chain, _chord, group)):
        yield node, before
        return
    if node.immutable or node.args or node.kwargs.keys() - _OWN_KEYWORDS or node.kwargs.get("kwargs"):
        before = None
    if isinstance(node, _chain):
        for index, step in enumerate(node.tasks):
            yield from _steps(step, _RESULT if index else before, app)
        return
    for step in node.tasks.tasks if isinstance(node.tasks, group) else node.tasks:
        yield from _steps(step, before, app)
    if isinstance(node, _chord):
        yield from _steps(node.body, _RESULT, app)
