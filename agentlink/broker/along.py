"""What a pool process tells the worker's main process with a task's answer: a result to be stored, what the task took.

While messages wait in a worker's hand, a pool process does not tell the broker what a task has returned: it hands that
to the worker's main process together with Celery's answer, and the next exchange of the lease stores it in the step
that acknowledges the message. Only results that nothing else hangs on: of tasks outside any run, with nothing to come
after them. A worker that dies in those milliseconds has its task run again, as one that dies a moment earlier.

Private parts of Celery 5.7 used here and held by a contract test: `celery.app.trace.fast_trace_task` and what it
answers; that a request hands it to `pool.apply_async`.
"""

from __future__ import annotations

import math
import os
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from celery import Celery, bootsteps
from celery.app.trace import fast_trace_task
from celery.concurrency.asynpool import AsynPool

from resource_guard import caps
from resource_guard.caps import Used
from resource_guard.followers import BEGIN_BY_HEADER, NotBegun
from resource_guard.gate import MEASURE_HEADER
from resource_guard.pool_hands import hand_out, in_one_write, turn_lightly

#: The message header by which the main process allows it.
HEADER = "agentlink_along"
#: A larger result goes by itself: a pipe holds 64 kB, and an exchange carries up to 64 results.
_MAX_BYTES = 8192
#: A process says again what it holds without a task when that has changed by so much.
_TOLD_STEP_BYTES = 4_000_000


class Stored(NamedTuple):
    """What is to be stored: the result's key and value, and for how many seconds (0: for ever)."""

    key: bytes
    value: bytes
    keep_s: int


class _Left(NamedTuple):
    """What a pool process has left with its answer."""

    stored: Stored | None
    used: Used | None
    #: What the process holds without a task, in memory of its own, and its pid.
    held_bytes: int
    pid: int


class _Outgoing:
    """In a pool process: whether a task runs that may leave its result here, that, what was told, and its meter."""

    open = False
    result: Stored | None = None
    told_bytes = 0
    meter: caps.Meter | None = None


_results: dict[str, Stored] = {}
_used: dict[str, Used] = {}


def leave(stored: Stored) -> bool:
    """Leave a result for the main process; False where it has to be stored here."""
    if not _Outgoing.open or len(stored.value) > _MAX_BYTES:
        return False
    _Outgoing.result = stored
    return True


def collect_result(task_id: str) -> Stored | None:
    """In the main process: the result that a task's pool process has left, once."""
    return _results.pop(task_id, None)


def collect_used(task_id: str) -> Used | None:
    """In the main process: what a task has taken, if that was measured, once."""
    return _used.pop(task_id, None)


def used_so_far() -> Used | None:
    """What the task that this process runs has taken by now; None where that is not measured, or none runs."""
    return _Outgoing.meter.stop() if _Outgoing.meter is not None else None


def install(app: Celery) -> None:
    """Have the pool processes of every worker of `app` hand over what they may. Doing it twice changes nothing."""
    app.steps["worker"].add(AlongStep)


class AlongStep(bootsteps.StartStopStep):
    """Has jobs run by `traced` where they go to another process."""

    requires = ("celery.worker.components:Pool",)

    def start(self, worker: Any) -> None:
        """Before the consumer makes its strategies, which keep the pool's `apply_async`."""
        pool = getattr(worker.pool, "_pool", None)
        if isinstance(pool, AsynPool):
            turn_lightly(pool)
            worker.pool.apply_async = _by_traced(worker.pool.apply_async, partial(hand_out, pool, worker.hub))


def _by_traced(apply_async: Callable[..., Any], hand_out: Callable[[], None]) -> Callable[..., Any]:
    def apply_traced(target: Any, *args: Any, **kwargs: Any) -> Any:
        job = apply_async(traced if target is fast_trace_task else target, *args, **kwargs)
        if job is not None:  # a pool that stops takes none
            _, _, request, *_ = kwargs["args"]
            job.may_follow = BEGIN_BY_HEADER in request
            in_one_write(job)
            hand_out()
        return job

    return apply_traced


def traced(task: str, task_id: str, request: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Celery's own, in a pool process; what it left goes along with its answer."""
    if time.monotonic() > request.get(BEGIN_BY_HEADER, math.inf):
        return False, NotBegun(), 0.0
    meter = caps.Meter() if request.get(MEASURE_HEADER) else None
    _Outgoing.open, _Outgoing.result, _Outgoing.meter = True, None, meter
    if meter:
        meter.start()
    try:
        answer = fast_trace_task(task, task_id, request, *args, **kwargs)
    finally:
        _Outgoing.open, _Outgoing.meter = False, None
    if answer[0]:
        _let_go_of_frames(answer[1])
    used = meter.stop() if meter else None
    left = _Left(_Outgoing.result, used, caps.give_back(), os.getpid())
    return _with(left, task_id, answer)


def _let_go_of_frames(failure: Any) -> None:
    """What a failed task had in its variables is not kept until somebody has read of its failure.

    Celery clears the error's own traceback, and not those of the errors it came from.
    """
    error, seen = getattr(failure.exception, "exc", failure.exception), set()
    while isinstance(error, BaseException) and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _with(left: _Left, task_id: str, answer: Any) -> Any:
    if left.stored is None and left.used is None and abs(left.held_bytes - _Outgoing.told_bytes) < _TOLD_STEP_BYTES:
        return answer
    _Outgoing.told_bytes = left.held_bytes
    failed, value, runtime = answer
    return failed, _Along(task_id, value, left), runtime


class _Along:
    """A value that, read in the main process, is that value, and leaves there what is to be collected."""

    def __init__(self, task_id: str, value: object, left: _Left) -> None:
        self._facts = (task_id, value, left)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Any, ...]]:
        return _arrive, self._facts


def _arrive(task_id: str, value: object, left: _Left) -> object:
    if left.stored is not None:
        _results[task_id] = left.stored
    if left.used is not None:
        _used[task_id] = left.used
    caps.told_bytes[left.pid] = left.held_bytes
    return value
