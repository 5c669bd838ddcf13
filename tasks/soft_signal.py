"""The signal that asks a task to end (its time is up, or its run was cancelled) counts in the task's own code only.

It may come a moment late, when the task has returned and its process stores the result, or waits for the next: there it
would break what has been done, or the process.

Of billiard 4.3, held by a contract test: `billiard.pool.soft_timeout_sighandler`, which each new process installs.
"""

from __future__ import annotations

from typing import Any

import billiard.pool
from celery._state import get_current_worker_task
from celery.exceptions import SoftTimeLimitExceeded

from agentlink.broker.fanout import is_in_body


def install() -> None:
    """Have processes that are made from now on heed it. Doing it twice changes nothing."""
    billiard.pool.soft_timeout_sighandler = _end_body


def _end_body(signum: int, frame: Any) -> None:
    task = get_current_worker_task()
    if task is not None and is_in_body(task.request):
        raise SoftTimeLimitExceeded
