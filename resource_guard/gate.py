"""Holds the tasks a worker has taken until they may start, and knows what those that run are allowed and take.

Between Celery's consumer and its pool: a request comes in by `handle`, and goes on to the pool when admission lets it.
Nothing starts while the valve is closed. Safe to call from the event loop, the guard's thread and pool threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from resource_guard.admission import Admission, Applicant, Room
from resource_guard.caps import Used
from resource_guard.errors import TaskTooLarge
from resource_guard.followers import BEGIN_BY_HEADER, BEGIN_WITHIN_S, is_short
from resource_guard.profiles import Profile
from resource_guard.reservations import DECLARED_HEADER, Reservation, allow, declared, reserve

logger = logging.getLogger(__name__)

#: Message headers that the main process gives a pool process with its task: its cap and what is reserved for it the
#: next time should it want more (None: that is its failure), in bytes; and whether it is to be measured.
CAP_HEADER = "agentlink_cap"
MEASURE_HEADER = "agentlink_measure"
#: How often a task was evicted, and what is to be reserved for it since then.
EVICTED_HEADER = "agentlink_evicted"
RUN_HEADER = "agentlink_run"

# While a task waits for room, so many more are taken to find one that fits.
LOOK_AHEAD = 24
# What they wait for longer than this, with all places taken, another worker may have at once.
SURPLUS_AFTER_S = 1.0


class Request(Protocol):
    """What is asked of a request; see `tasks.request.Request`."""

    id: str
    name: str
    message: Any
    task: Any
    request_dict: dict[str, Any]
    worker_pid: int | None
    ended: Ended | None
    #: Called when it has ended, whichever way.
    on_end: Callable[[Any, Used | None], None] | None
    #: Called when its process came to it too late; see `followers`.
    on_not_begun: Callable[[Any], None] | None
    delivery_info: dict[str, Any]

    def refuse(self, error: Exception) -> None:
        """Fail it without running it."""

    def give_back(self) -> None:
        """Return its message to the head of its queue."""


class Knowledge(Protocol):
    """What earlier runs have taught."""

    def of(self, name: str) -> Profile | None:
        """What is known of a task name."""

    def wants(self, name: str) -> bool:
        """Whether the next run is worth measuring."""

    def learn(self, name: str, used: Used) -> None:
        """A task has taken so much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """Why the guard has ended a task's process: with `reserve_bytes` it runs again, and is to have so much then."""

    used_bytes: int
    allowed_bytes: int
    reserve_bytes: int | None


@dataclass(kw_only=True, slots=True, eq=False)
class Started:
    """A task that has been handed to the pool. Sizes are beyond what an idle process has."""

    request: Request
    applicant: Applicant
    reserved: Reservation
    #: None: not capped, since it has no process of its own.
    cap_bytes: int | None
    started_at: float
    #: By when a process is to begin it; None: it has one to itself.
    begin_by: float | None = None
    #: What its process and all that this has started took when last seen, and at most.
    use_bytes: int = 0
    peak_bytes: int = 0

    @property
    def pid(self) -> int | None:
        """The pool process it runs in, once that has said so."""
        return self.request.worker_pid


class Gate:
    """`start` hands a request to the pool; `room` says what there is now, `capacity_bytes` and `cores` what at best.

    `withdraw` takes back a request that no process has begun in time; False: one may have. `on_busy` is called when
    one starts that may take long, while no other such runs.

    A `capacity_bytes` of 0 is one that is not known yet, or without a limit. With `dry_run` no task is failed for what
    it declares.
    """

    def __init__(
        self,
        admission: Admission,
        knowledge: Knowledge,
        start: Callable[[Any], None],
        *,
        is_open: Callable[[], bool],
        room: Callable[[], Room],
        capacity_bytes: Callable[[], int],
        cores: Callable[[], float],
        isolated: bool,
        withdraw: Callable[[Any], bool] = lambda _: False,
        dry_run: bool = False,
        on_busy: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dry_run = dry_run
        self.admission = admission
        self._knowledge = knowledge
        self._start = start
        self._is_open, self._room, self.capacity_bytes = is_open, room, capacity_bytes
        self._cores = cores
        self._isolated = isolated  # each task has a process of its own, to be capped and measured
        self._withdraw, self._on_busy = withdraw, on_busy
        self._clock = clock
        self._lock = threading.RLock()
        self._waiting: dict[int, tuple[Request, Applicant, Reservation]] = {}
        self._started: dict[int, Started] = {}
        self._followers: dict[int, Started] = {}
        self._pumping = False
        self._last_start_at = 0.0
        #: How many followers no process has begun in time.
        self.taken_back = 0

    @property
    def look_ahead(self) -> int:
        """How many more messages than usual are worth taking."""
        return LOOK_AHEAD if self.admission.blocked and self._is_open() and not self._full else 0

    @property
    def _full(self) -> bool:
        """Whether nothing can start before another ends, however little it takes."""
        return self.admission.running >= self._room().slots

    @property
    def waiting(self) -> int:
        """How many tasks are held."""
        return self.admission.waiting

    def started(self) -> list[Started]:
        """Those that run, as of now."""
        with self._lock:
            return list(self._started.values())

    def handle(self, request: Any) -> None:
        """Take a request; it starts now or later, or fails at once if it can never fit."""
        reserved = self._reserve(request)
        if error := self._too_large(request, reserved):
            if not self._dry_run:
                request.refuse(error)
                return
            logger.warning("would fail task %s[%s]: %s", request.name, request.id, error)
        applicant = self._applicant(request, reserved)
        with self._lock:
            self._waiting[applicant.key] = request, applicant, reserved
            self.admission.offer(applicant)
        self.pump()

    def pump(self) -> None:
        """Start what may start."""
        with self._lock:
            if self._pumping:  # starting one, in a pool that runs it at once, comes back here
                return
            self._pumping = True
            try:
                while self.admission.waiting and self._is_open():
                    room = self._room()
                    chosen = self.admission.next(room, self._clock())
                    if chosen is None:
                        break
                    self._let_go(chosen, room)
            finally:
                self._pumping = False

    def finished(self, request: Any, used: Used | None = None) -> None:
        """A started task has ended, whichever way; it may be said more than once. `used` is what its process tells."""
        with self._lock:
            one = self._forget(request)
            if one is None:
                return
        if used is not None:
            # What programs it had started took is known from watching alone.
            peak_bytes = max(used.peak_bytes, one.peak_bytes)
            self._knowledge.learn(request.name, Used(peak_bytes=peak_bytes, cpu_s=used.cpu_s, wall_s=used.wall_s))
        self.pump()

    def take_back_late(self) -> None:
        """Start elsewhere, as soon as may be, what no process has begun in time."""
        now = self._clock()
        with self._lock:
            for one in list(self._followers.values()):
                if one.begin_by is None or one.begin_by >= now:
                    return
                if one.pid is None and self._withdraw(one.request):
                    self.start_again(one.request)
                elif one.pid is not None:
                    del self._followers[id(one.request)]

    def start_again(self, request: Request) -> None:
        """A started task has not been begun: it waits for its turn once more."""
        self.taken_back += 1
        with self._lock:
            self._forget(request)
            request.on_end = None
        request.request_dict.pop(BEGIN_BY_HEADER, None)
        self.handle(request)

    def watch(self, bytes_by_pid: Mapping[int, int]) -> None:
        """What pool processes, with all they have started, take by now beyond an idle one."""
        with self._lock:
            for one in self._started.values():
                use_bytes = bytes_by_pid.get(one.pid or 0)
                if use_bytes is not None:
                    one.use_bytes = use_bytes
                    one.peak_bytes = max(one.peak_bytes, one.use_bytes)
                    if one.use_bytes > one.reserved.memory_bytes:
                        self.admission.takes(one.applicant.key, one.use_bytes)

    def give_back_waiting(self) -> int:
        """Return to their queues what has not started, oldest at the head; how many those were."""
        return self._give_back(but_blocked=False)

    def give_back_surplus(self) -> int:
        """Return what was only taken to find one that fits, if all places have been taken for a while since."""
        if self._clock() < self._last_start_at + SURPLUS_AFTER_S or not self._full:
            return 0
        return self._give_back(but_blocked=True)

    def drop_waiting(self) -> None:
        """Forget what has not started: the connection it came by is gone, and its messages go back with that."""
        self._forget_waiting(but_blocked=False)

    def finish_all_but(self, alive: Iterable[Any]) -> None:
        """Forget started tasks of which nobody will tell any more."""
        kept = {id(request) for request in alive}
        for one in self.started():
            if id(one.request) not in kept:
                self.finished(one.request)

    def _give_back(self, *, but_blocked: bool) -> int:
        waiting = self._forget_waiting(but_blocked=but_blocked)
        for request in waiting:
            request.give_back()
        return len(waiting)

    def _forget_waiting(self, *, but_blocked: bool) -> list[Request]:
        with self._lock:
            keys = self.admission.withdraw(but_blocked=but_blocked)
            return [self._waiting.pop(key)[0] for key in keys]

    def _forget(self, request: Request) -> Started | None:
        self._followers.pop(id(request), None)
        if (one := self._started.pop(id(request), None)) is not None:
            self.admission.finished(id(request))
        return one

    def _let_go(self, chosen: Applicant, room: Room) -> None:
        request, applicant, reserved = self._waiting.pop(chosen.key)
        self._last_start_at = now = self._clock()
        headers = request.request_dict
        cap_bytes = None
        capacity_bytes = self.capacity_bytes()
        if self._isolated and capacity_bytes:
            free_bytes = int(room.memory_bytes - self.admission.reserved_bytes + applicant.memory_bytes)
            allowance = allow(reserved, free_bytes=free_bytes, capacity_bytes=capacity_bytes)
            cap_bytes = allowance.cap_bytes
            headers[CAP_HEADER] = [cap_bytes, allowance.next_bytes]
            headers[MEASURE_HEADER] = self._knowledge.wants(request.name)
        self._started[chosen.key] = one = Started(
            request=request, applicant=applicant, reserved=reserved, cap_bytes=cap_bytes, started_at=now
        )
        if self.admission.running > room.slots:
            headers[BEGIN_BY_HEADER] = one.begin_by = now + BEGIN_WITHIN_S
            request.on_not_begun = self.start_again
            self._followers[chosen.key] = one
        request.on_end = self.finished
        if not chosen.short and sum(not one.applicant.short for one in self._started.values()) == 1:
            self._on_busy()
        self._start(request)

    def _reserve(self, request: Request) -> Reservation:
        declared_bytes, declared_cores = declared(request.task, request.request_dict.get(DECLARED_HEADER))
        evictions, after_eviction_bytes = request.request_dict.get(EVICTED_HEADER) or (0, 0)
        return reserve(
            declared_bytes=declared_bytes,
            declared_cores=declared_cores,
            known=self._knowledge.of(request.name),
            evictions=evictions,
            after_eviction_bytes=after_eviction_bytes,
            capacity_bytes=self.capacity_bytes(),
        )

    def _too_large(self, request: Request, reserved: Reservation) -> TaskTooLarge | None:
        capacity_bytes = self.capacity_bytes()
        cores = declared(request.task, request.request_dict.get(DECLARED_HEADER))[1] or 0.0
        if 0 < capacity_bytes < reserved.memory_bytes:
            return TaskTooLarge(request.name, "memory", reserved.memory_bytes, capacity_bytes)
        most = self._cores()
        return TaskTooLarge(request.name, "cpu", cores, most) if cores > most else None

    def _is_short(self, request: Request, reserved: Reservation, share: str) -> bool:
        """Whether it may follow another. Runs take turns, which end where a step has been handed to a process.

        One whose message is acknowledged as it begins could not go back if it was not begun.
        """
        if share:
            return False
        can_go_back = not reserved.evictions and getattr(request.task, "acks_late", True)
        return can_go_back and is_short(self._knowledge.of(request.name))

    def _applicant(self, request: Request, reserved: Reservation) -> Applicant:
        headers = request.request_dict
        root_id = headers.get("root_id")
        share = headers.get(RUN_HEADER) or (root_id if root_id and root_id != request.id else "")
        return Applicant(
            key=id(request),
            memory_bytes=reserved.memory_bytes,
            cpu_cores=reserved.cpu_cores,
            priority=(request.delivery_info or {}).get("priority") or 0,
            share=share,
            arrived_at=self._clock(),
            short=self._is_short(request, reserved, share),
        )
