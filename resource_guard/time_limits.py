"""Time for which a task's process was stopped does not count against the task's time limits.

Checked with Celery 5.7 and billiard 4.3. `AsynPool` starts a timer when a process accepts a job: at the soft limit it
calls `_on_soft_timeout`, which starts another one for what is left to the hard limit, where `_on_hard_timeout` is
called. A timer that fires before its task has run for so long is started again here, for the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

# So much too early is early enough: a process that runs for 5 % of the time would be waited for in ever smaller steps.
_EARLY_ENOUGH_S = 0.01


def count_running_time_only(pool: Any, stopped_s: Callable[[int], float]) -> None:
    """Have the limits of `pool`, an `AsynPool`, leave out what `stopped_s` says a process was stopped for, so far.

    To be called before the event loop watches the pool. `stopped_s` is asked from the event loop, with a process id.
    """
    stopped_before_s: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
    create_handlers = pool._create_timelimit_handlers
    on_soft_timeout, on_hard_timeout = pool._on_soft_timeout, pool._on_hard_timeout

    def left_s(result: Any, limit_s: float) -> float:
        stopped = stopped_s(result._worker_pid) - stopped_before_s.get(result, 0.0)
        ran_s: float = time.monotonic() - result._time_accepted - stopped
        return limit_s - ran_s

    def create_timelimit_handlers(hub: Any) -> None:
        """Once for each connection: they are made anew, for an event loop that may be another one."""
        create_handlers(hub)
        on_timeout_set = pool.on_timeout_set

        def note_and_set(result: Any, soft: float | None, hard: float | None) -> None:
            if stopped := stopped_s(result._worker_pid):
                stopped_before_s[result] = stopped
            on_timeout_set(result, soft, hard)

        def soft_timeout(job: int, soft: float, hard: float | None, hub: Any) -> None:
            result = pool._cache.get(job)
            if result is not None and (rest_s := left_s(result, soft)) > _EARLY_ENOUGH_S:
                pool._tref_for_id[job] = hub.call_later(rest_s, soft_timeout, job, soft, hard, hub)
            else:
                on_soft_timeout(job, soft, hard, hub)

        def hard_timeout(job: int) -> None:
            result = pool._cache.get(job)
            if result is not None and (rest_s := left_s(result, result._timeout)) > _EARLY_ENOUGH_S:
                pool._tref_for_id[job] = hub.call_later(rest_s, hard_timeout, job)
            else:
                on_hard_timeout(job)

        pool.on_timeout_set = note_and_set
        pool._on_soft_timeout, pool._on_hard_timeout = soft_timeout, hard_timeout

    pool._create_timelimit_handlers = create_timelimit_handlers
