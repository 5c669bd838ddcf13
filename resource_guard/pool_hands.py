"""When a process of Celery's pool is handed a job, and how many at a time: one, or one that is to follow another.

Checked with Celery 5.7. `AsynPool` keeps the pipes of processes that have a job in a set, `_busy_workers`, and writes
to none of those; when a process answers it calls `_mark_worker_as_available`. What stands in for that set here counts.
`outbound_buffer` has the jobs to be written, the next one first. The event loop's `consolidate_callback` writes one to
each of the pipes it is given that may have one; those that are in `_active_writes` are being written to. A job's
`_payload` is what is written of it: a header of four bytes, the rest, and how many bytes that has; if a write takes
more than the header, no more of that is written. `_create_write_handlers` makes `on_poll_start`, which each turn of the
loop begins with.
"""

from __future__ import annotations

import contextlib
import select
from collections import Counter
from collections.abc import Iterable
from typing import Any


class Hands:
    """The pipes of processes that have enough to do: a job each, two while the next one is to follow another.

    Of a set it has what Celery uses.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._jobs: Counter[int] = Counter()

    def add(self, fd: int) -> None:
        """Its process has been handed a job."""
        self._jobs[fd] += 1

    def one_less(self, fd: int) -> None:
        """Its process has answered for one."""
        if self._jobs[fd] > 1:
            self._jobs[fd] -= 1
        else:
            self.discard(fd)

    def discard(self, fd: int) -> None:
        """There is no such process any more."""
        self._jobs.pop(fd, None)

    def intersection_update(self, _fds: Iterable[int]) -> None:
        """Celery has forgotten jobs: what those that are left have been written to is known."""
        written = [job._write_to for job in self._pool._cache.values() if job._write_to is not None]
        self._jobs = Counter(process.inqW_fd for process in written if process._is_alive())

    def __contains__(self, fd: int) -> bool:
        return self._jobs.get(fd, 0) >= self._enough

    def __len__(self) -> int:
        enough = self._enough
        return sum(jobs >= enough for jobs in self._jobs.values())

    @property
    def _enough(self) -> int:
        """One that is to follow another does so only where no process is free."""
        outbound = self._pool.outbound_buffer
        may_follow = outbound and getattr(outbound[0], "may_follow", False)
        return 2 if may_follow and all(fd in self._jobs for fd in self._pool._all_inqueues) else 1


def hand_out(pool: Any, hub: Any) -> None:
    """Write what `pool`, an `AsynPool`, has for its processes now, in the thread of the event loop `hub`.

    Celery registers the pipes with the loop, is told in the loop's next turn that they can be written to, which is so
    of each whose process has done its last job, and registers them no more: six system calls and a turn for each job.
    """
    for fd in tuple(pool._all_inqueues):
        if not pool.outbound_buffer:
            return
        if fd not in pool._busy_workers and fd not in pool._active_writes:
            hub.consolidate_callback([fd])


def in_one_write(job: Any) -> None:
    """Have a job, which was given to an `AsynPool`, written at once, not its header first.

    Its process waits for that, wakes up, and has to wait again for the rest. A pipe takes so few bytes whole or not at
    all (pipe(7)); more are written as ever.
    """
    header, body, body_bytes = job._payload
    if len(header) + body_bytes <= select.PIPE_BUF:
        job._payload = memoryview(b"".join((header, body))), memoryview(b""), 0


def turn_lightly(pool: Any) -> None:
    """Spare the event loop what `pool`, an `AsynPool`, does in each turn without need.

    It has the loop forget the pipes that it does not watch: two system calls that fail for each process.
    To be called before the event loop watches the pool.
    """
    create_write_handlers = pool._create_write_handlers

    def create(hub: Any, **kwargs: Any) -> None:
        create_write_handlers(hub, **kwargs)
        on_poll_start = pool.on_poll_start

        def on_poll_start_if_needed() -> None:
            free = len(pool._busy_workers) < len(pool._all_inqueues)
            if (pool.outbound_buffer and free) or not pool._all_inqueues.isdisjoint(hub.writers):
                on_poll_start()

        pool.on_poll_start = on_poll_start_if_needed

    pool._create_write_handlers = create


def let_follow(pool: Any) -> None:
    """Have `pool`, an `AsynPool`, write jobs with a true `may_follow` to processes that have one already.

    To be called before the event loop watches the pool, which takes hold of the set.
    """
    pool._busy_workers = hands = Hands(pool)
    pool._mark_worker_as_available = hands.one_less


def withdraw(pool: Any, job: Any) -> bool:
    """Take back a job whose time to be begun is over; False if its process may have begun it before.

    A process says that it has begun before it looks at the time. So if by now there is nothing to read from it, it will
    find that it is too late.
    """
    if job._accepted or job.ready():
        return False
    try:
        pool.outbound_buffer.remove(job)
    except ValueError:
        if job._write_to is None or _may_have_said_something(job._write_to):
            return False
    job.discard()
    return True


def _may_have_said_something(process: Any) -> bool:
    with contextlib.suppress(OSError, ValueError):  # closed, after its end: Celery puts the job back
        poll = select.poll()
        poll.register(process.outq._reader.fileno(), select.POLLIN)
        return bool(poll.poll(0))
    return True
