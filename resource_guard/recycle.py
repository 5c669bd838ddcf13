"""Replacing an idle pool process by a new one, without a task being handed to the old one meanwhile.

Checked with Celery 5.7 and billiard 4.3, whose own `shrink` ends idle processes the same way, but any of them, and does
not keep a message from being written to one that is about to end.
"""

from __future__ import annotations

from typing import Any

from billiard.pool import RUN

from resource_guard.actions import TreeEnding

#: An idle process ends as soon as it is asked, unless a task has told it not to listen.
GRACE_S = 5.0


def take_out(pool: Any, pid: int) -> TreeEnding | None:
    """Take an idle process out of `pool`, an `AsynPool`; the caller steps what is returned until it is over.

    The pool starts another as soon as this one has ended. None if it is not idle: it runs a task, is being written one,
    has only begun itself, or has ended; or if the pool stops, and starts no other. To be called in the thread of the
    event loop, which writes tasks.
    """
    process, _ = pool._process_by_pid(pid)
    if pool._state != RUN or process is None or process in pool._waiting_to_start or not _is_idle(pool, process):
        return None
    # As if its pipe had been closed already: nothing more is written to it.
    pool.on_inqueue_close(process.inqW_fd, process)
    process._controlled_termination = True  # that it ends by a signal is no error
    return TreeEnding(pid, grace_s=GRACE_S)


def _is_idle(pool: Any, process: Any) -> bool:
    fd = process.inqW_fd
    if fd not in pool._all_inqueues or fd in pool._busy_workers or fd in pool._active_writes:
        return False
    return not any(process in (job._write_to, job._scheduled_for) for job in pool._cache.values())
