"""The base of every task: what it may declare, and how its body is run once."""

from __future__ import annotations

import errno
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, ClassVar, Generic

from celery import Task
from celery.canvas import Signature, StampingVisitor
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.result import AsyncResult
from typing_extensions import ParamSpec, TypeVar  # those of 3.11 have no defaults

from agentlink.broker import fanout
from agentlink.broker.arguments import ARGUMENTS_HEADER
from agentlink.broker.calls import DELIVERIES_HEADER
from agentlink.broker.cancelled import was_cancelled
from agentlink.broker.stored import passed_on
from resource_guard.caps import capped
from resource_guard.gate import CAP_HEADER
from resource_guard.reservations import DECLARED_HEADER, declared
from tasks import arguments
from tasks.errors import MemoryLimitExceeded
from tasks.fitting import check_what_follows
from tasks.large_arguments import body_has_ended
from tasks.limits import Limits
from tasks.telling import Telling, tell_so_far, told_at_the_end

logger = logging.getLogger(__name__)


#: The parameters of a task's function, and what it returns.
P = ParamSpec("P", default=...)
R = TypeVar("R", default=Any)


class BaseTask(Telling, Task, Generic[P, R]):
    """A task that may declare what it needs: the guard plans with it.

    Type checkers know what it is called with, and what a direct call returns. Celery brings no types, so all else is
    `Any` to them: also `f.s(...)`, which may leave out what the step before it hands over.
    """

    abstract = True
    #: Whether the task builds the canvas of a run, and so is no step of it.
    builds_canvas = False

    #: Memory one call takes at most, in bytes; None: not known.
    memory_bytes: int | None = None
    #: CPU cores one call keeps busy; None: not known.
    cpu_cores: float | None = None
    #: How many calls of a key may run at once, and how often one may begin; None: as the workers can.
    limits: Limits | None = None

    #: The task that undoes what a call has done, given its result, when its run fails.
    undo: Task | None = None

    #: How many times a call may begin, whatever ended the attempt before: an error in `retry_for`, a `self.retry()`, or
    #: the death of its process. After the last, the error is the task's failure, and a death makes it a dead letter.
    #: Three: two deaths can be bad luck (the kernel was short of memory, somebody killed the wrong one), three are not.
    max_attempts = 3
    #: Celery's word for the same, less the first attempt. A task that sets it itself bounds all its attempts by it, and
    #: the deaths among them by `max_attempts`: None suits one that calls `self.retry()` until something is there.
    max_retries: int | None = max_attempts - 1
    #: Of a `self.retry()` that does not say; Celery's default is three minutes.
    default_retry_delay = 3

    Request = "tasks.request:Request"

    #: Called with the request of a task that replaces itself and with what is to replace it, which they return.
    joiners: ClassVar[list[Callable[[Any, Any], Any]]] = []
    #: The same for what a task adds to the chord that it is a member of.
    adders: ClassVar[list[Callable[[Any, Any], Any]]] = []
    #: Called with the request of a task that had succeeded, for what it had added then.
    recallers: ClassVar[list[Callable[[Any], Iterable[Any]]]] = []

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keep the two words for attempts together, also where a task was not made by `@task`."""
        super().__init_subclass__(**kwargs)
        if cls.builds_canvas and vars(cls).keys() & {"concurrency", "rate"}:
            raise ValueError("want concurrency and rate on a workflow's tasks: the workflow itself ends as they begin")
        if "max_attempts" in vars(cls) and "max_retries" not in vars(cls):
            cls.max_retries = cls.max_attempts - 1

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the body, unless the message came twice: then its first result stands, and is passed on but once."""
        request = self.request
        result: R
        if request.called_directly or request.is_eager:
            result = super().__call__(*args, **kwargs)
        else:
            result = self._run_once(request, args, kwargs)
        return result

    def _run_once(self, request: Any, args: Any, kwargs: Any) -> Any:
        outcome = self._begin(request)
        if outcome in ("claimed", "superseded", "withdrawn"):
            why = "its run has ended" if outcome == "withdrawn" else "another worker has it"
            logger.info("task %s is not run here: %s", request.id, why)
            raise Ignore
        if outcome == "kept":
            return self._result_again(request)
        if getattr(request, ARGUMENTS_HEADER, None):
            # The request keeps the references: for a retry, for logs and events.
            args, kwargs = self.backend.arguments.read(request.id, args, kwargs)
        try:
            with fanout.body(request), told_at_the_end(request):
                allowed = getattr(request, CAP_HEADER, None)
                result = self.run(*args, **kwargs) if allowed is None else self._run_capped(allowed, args, kwargs)
        except SoftTimeLimitExceeded:
            if not self.backend.patiently(was_cancelled, self.backend.client, request):
                raise
            self.backend.mark_as_revoked(request.id, "its run was cancelled", request=request)
            raise Ignore from None
        body_has_ended(request)
        return result

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult:
        """Call the task; see `apply_async`."""
        return self.apply_async(args, kwargs)

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> AsyncResult:
        """Celery's: have a worker run the task.

        Raises:
            ArgumentsUnfit: the arguments don't fit the task's parameters, or those of what comes after it in a chain or
                chord that is sent with it; nothing was sent.
            BrokerUnavailable: nothing was accepted, and nothing of this call will run later.
            FanOutExceeded: the same; a task's run, or the agent that calls, has more steps by now than it may.
        """
        header = getattr(self, "__header__", None)  # Celery's, which is quick, but says nothing of the task
        if header is None or not arguments.are_taken_by(header, args or (), kwargs or {}):
            self.check_arguments(args or (), kwargs or {})
        if self._begins_a_canvas(options):
            check_what_follows(options, self._get_app())
        return super().apply_async(args, kwargs, *more, **options)

    def _begins_a_canvas(self, options: dict[str, Any]) -> bool:
        """Whether a call sends more with it, which nobody has looked at where it was planned or sent before."""
        if not (options.get("chain") or options.get("chord")) or options.get("retries"):
            return False
        sender = self._get_app().current_worker_task
        planned = "agentlink_place" in (options.get("headers") or {})
        return not planned and (sender is None or fanout.is_in_body(sender.request))

    @cached_property
    def parameters(self) -> inspect.Signature:
        """What a call may give. What wraps a function counts, not the function: it may take more, or less."""
        return inspect.signature(self.run, follow_wrapped=False)

    def check_arguments(self, args: Any, kwargs: Any) -> None:
        """Compare a call's arguments with the task's parameters, unless the task says `typing=False`.

        Raises:
            ArgumentsUnfit: what is wrong with them, and what would fit.
        """
        if self.typing:
            arguments.check(self.name, self.parameters, args, kwargs)

    def _run_capped(self, allowed: tuple[int, int | None], args: Any, kwargs: Any) -> Any:
        """Run the body with so much memory at most; what wants more is tried with the next size, or has failed."""
        cap_bytes, next_bytes = allowed
        with capped(cap_bytes) as cap:
            try:
                return self.run(*args, **kwargs)
            except MemoryLimitExceeded:
                raise  # of a task called as a function
            except (MemoryError, OSError) as error:
                if isinstance(error, OSError) and error.errno != errno.ENOMEM:  # of mmap(), fork() …
                    raise
                used_bytes = cap.used_bytes()
                declared_bytes, _ = declared(self, getattr(self.request, DECLARED_HEADER, None))
                exceeded = MemoryLimitExceeded(self.name, used_bytes, cap_bytes, next_bytes, declared_bytes)
                if next_bytes is None:
                    raise exceeded from error
                raise Reject(exceeded, requeue=True) from None

    def begins_again(self, retries: int, deaths: int) -> bool:
        """Whether a call that was retried and whose process died so often may begin once more."""
        spent = self.max_retries is not None and retries + deaths > self.max_retries
        return not spent and deaths < self.max_attempts

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: Any = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Any:
        """Celery's. After the last attempt the task fails with what went wrong, not with Celery's word for it.

        Attempts that ended with the death of a process count as well.
        """
        error = exc or sys.exc_info()[1]
        request = self.request
        deaths = getattr(request, DELIVERIES_HEADER, 0) or 0
        limit = self.max_retries if max_retries is None else max_retries
        if deaths and limit is not None and request.retries + 1 + deaths > limit:
            raise error or self.MaxRetriesExceededError(f"{self.name} has no attempts left", task_args=request.args)
        tell_so_far(request)
        return super().retry(args, kwargs, error, throw, eta, countdown, max_retries, **options)

    def replace(self, sig: Any) -> Any:
        """Celery's; also a task that does so twice, because its process died, has its work done once.

        What goes on in its place has the task's stamps, besides its own.
        """
        request = self.request
        for join in self.joiners:
            sig = join(request, sig)
        if request.stamps:
            sig.stamp(_Stamps(request.stamps))
        return super().replace(sig)

    def add_to_chord(self, sig: Any, lazy: bool = False) -> Any:
        """Celery's; also a task that does so twice, because its process died, adds it once."""
        if not lazy:
            for add in self.adders:
                sig = add(self.request, sig)
        return super().add_to_chord(sig, lazy)

    def on_replace(self, sig: Any) -> Any:
        """Celery's, with `self.replace(...)`: what goes on in its place is no deeper than it was itself."""
        tell_so_far(self.request)
        with fanout.replacing(self.request):
            return super().on_replace(sig)

    def _begin(self, request: Any) -> str:
        """Record that a step begins, and claim it. A task outside any run does neither, unless it came again."""
        step = self.builds_canvas or getattr(request, "agentlink_run", None) or request.root_id != request.id
        step = step or request.replaced_task_nesting  # the last of a replacement has the id of what it replaces
        if not step and not getattr(request, DELIVERIES_HEADER, 0) and not self.track_started:
            return "stored"
        started = {"pid": os.getpid(), "hostname": request.hostname}
        self.backend.store_result(request.id, started, "STARTED", request=request)
        outcome: str = getattr(request, "agentlink_outcome", "stored")
        return outcome

    def _result_again(self, request: Any) -> Any:
        """The stored result, or the reference to it, for those that come after it if they have not been told."""
        meta = self.backend.patiently(self.backend.get_task_meta, request.id)
        logger.info("task %s has succeeded before; its result stands", request.id)
        if getattr(request, "agentlink_replay", None):
            for recall in self.recallers if request.chord else ():
                for member in recall(request):
                    super().add_to_chord(member)
            return passed_on(meta)  # all that comes after it is to be told again
        if (request.chain or request.callbacks) and not meta.get("children"):
            return passed_on(meta)
        if request.chord:
            self.backend.complete_chord(request, meta["status"], passed_on(meta))
        raise Ignore


class _Stamps(StampingVisitor):
    """A task's, for what goes on in its place. Celery stamps a chord's body by visitors alone."""

    def __init__(self, stamps: dict[str, Any]) -> None:
        self._stamps = stamps

    def on_signature(self, sig: Signature, **headers: Any) -> dict[str, Any]:
        """Those that it has not of its own."""
        own = sig.options.get("stamped_headers") or ()
        return {name: value for name, value in self._stamps.items() if name not in own}
