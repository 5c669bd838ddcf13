"""The base of every task: what it may declare, and how a call reaches the broker or fails in time."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import redis
from celery import Celery, Task
from celery.exceptions import Ignore, Reject
from kombu.exceptions import LimitExceeded, OperationalError

from agentlink.broker import fanout
from agentlink.broker.calls import DELIVERIES_HEADER, Call, deadline, together
from agentlink.broker.errors import BrokerStartError, BrokerUnavailable, reason_of
from agentlink.broker.results import PATIENCE_S
from agentlink.broker.server import ensure_running
from agentlink.broker.transport import register
from agentlink.settings import load
from agentlink.units import parse_size
from resource_guard.caps import capped
from resource_guard.gate import CAP_HEADER
from tasks.errors import MemoryLimitExceeded
from tasks.retries import retry_options

logger = logging.getLogger(__name__)

# While the broker is away (restarting, say), a call tries again this often until its deadline.
_PUBLISH_RETRY = {"max_retries": 1000, "interval_start": 0.05, "interval_step": 0.05, "interval_max": 0.5}

# A task that has to send on what comes next tries to reach it this often.
_TASK_RECONNECT = {"interval_start": 0.1, "interval_step": 0.5, "interval_max": 5.0}
# Of a hard time limit given alone, the share after which the task is asked to end by itself.
_SOFT_FRACTION = 0.9


class BaseTask(Task):
    """A task that may declare what it needs: the guard plans with it."""

    abstract = True
    #: Whether the task builds the canvas of a run, and so is no step of it.
    builds_canvas = False

    #: Memory one call takes at most, in bytes; None: not known.
    memory_bytes: int | None = None
    #: CPU cores one call keeps busy; None: not known.
    cpu_cores: float | None = None

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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keep the two words for attempts together, also where a task was not made by `@task`."""
        super().__init_subclass__(**kwargs)
        if "max_attempts" in vars(cls) and "max_retries" not in vars(cls):
            cls.max_retries = cls.max_attempts - 1

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body, unless the message came twice: then its first result stands, and is passed on but once."""
        request = self.request
        if request.called_directly or request.is_eager:
            return super().__call__(*args, **kwargs)
        outcome = self._begin(request)
        if outcome in ("claimed", "superseded"):
            logger.info("task %s is not run here: another worker has it", request.id)
            raise Ignore
        if outcome == "kept":
            return self._result_again(request)
        with fanout.body(request):
            if (allowed := getattr(request, CAP_HEADER, None)) is None:
                return self.run(*args, **kwargs)
            return self._run_capped(allowed, args, kwargs)

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
                exceeded = MemoryLimitExceeded(self.name, used_bytes, cap_bytes, next_bytes, self.memory_bytes)
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
        return super().retry(args, kwargs, error, throw, eta, countdown, max_retries, **options)

    def replace(self, sig: Any) -> Any:
        """Celery's; also a task that does so twice, because its process died, has its work done once."""
        for join in self.joiners:
            sig = join(self.request, sig)
        return super().replace(sig)

    def on_replace(self, sig: Any) -> Any:
        """Celery's, with `self.replace(...)`: what goes on in its place is no deeper than it was itself."""
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
        """The stored result, for those that come after it if they have not been told."""
        meta = self.backend.patiently(self.backend.get_task_meta, request.id)
        logger.info("task %s has succeeded before; its result stands", request.id)
        if (request.chain or request.callbacks) and not meta.get("children"):
            return meta["result"]
        if request.chord:
            self.backend.complete_chord(request, meta["status"], meta["result"])
        raise Ignore


class App(Celery):
    """A Celery app whose calls are accepted within the publish timeout or raise `BrokerUnavailable`."""

    control_cls = "tasks.control:Control"
    _broker_seen = False

    def __init__(self, main: str, **kwargs: Any) -> None:
        register()
        super().__init__(main, task_cls=BaseTask, **kwargs)

    def send_task(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Send a task by name; `Task.delay` and `apply_async` come through here too.

        Raises:
            BrokerUnavailable: nothing was accepted, and nothing of this call will run later.
            FanOutExceeded: the same; a task's run, or the agent that calls, has more steps by now than it may.
        """
        _fit_soft_limit(kwargs)
        if (sender := self.current_worker_task) is not None:
            fanout.count(sender.request, kwargs)
        else:
            fanout.count_call(kwargs)
        kwargs["retry_policy"] = _PUBLISH_RETRY | (kwargs.get("retry_policy") or {})
        with self.producer_or_acquire(kwargs.pop("producer", None)) as producer:
            return super().send_task(name, *args, producer=producer, **kwargs)

    def producer_or_acquire(self, producer: Any = None) -> AbstractContextManager[Any]:
        """Celery's, for everything it publishes at once: one call, or all of a group.

        What is published inside reaches the broker together, within the publish timeout or not at all.
        """
        return contextlib.nullcontext(producer) if producer is not None else self._publishing()

    @contextlib.contextmanager
    def _publishing(self) -> Iterator[Any]:
        settings = load()
        # A task that can't pass its work on is in no hurry; it waits for the broker as long as that takes.
        in_task = self.current_worker_task is not None
        # One half to reach a broker, the other (the socket's timeout) for its answer.
        half_s = settings.publish_timeout_s / 2
        try:
            with deadline(PATIENCE_S if in_task else half_s, from_outside=not in_task) as call:
                self.need_broker(half_s)
                with (
                    self.producer_pool.acquire(block=True, timeout=_left_s(call)) as producer,
                    _declaring_once(producer),
                    together(),
                ):
                    if in_task:
                        # Or kombu would connect where it publishes, and give up after the time that others have.
                        producer.connection.ensure_connection(
                            _log_not_reached, timeout=_left_s(call), **_TASK_RECONNECT
                        )
                    yield producer
        except BrokerUnavailable:
            raise
        except (OperationalError, LimitExceeded, redis.RedisError, OSError, BrokerStartError) as error:
            raise BrokerUnavailable(settings.shown_url, _reason(error)) from error

    def need_broker(self, timeout_s: float | None = None) -> None:
        """Start the embedded broker if this process is the first to need it.

        Once a process: a broker that goes away later is not brought back from here, its calls fail in time.

        Raises:
            BrokerStartError: with the reason and what to do about it.
        """
        if not self._broker_seen and load().embedded:
            ensure_running(load(), timeout_s)
        self._broker_seen = True


@contextlib.contextmanager
def _declaring_once(producer: Any) -> Iterator[None]:
    """Inside, each queue is declared once on a channel.

    kombu 5.7 remembers that too, but copies the queue to ask: a sixth of the time that a large group took.
    """
    declare, declared = producer.maybe_declare, set()

    def maybe_declare(queue: Any, *args: Any, **kwargs: Any) -> bool:
        if (queue.name, id(producer.channel)) in declared:
            return False
        is_new: bool = declare(queue, *args, **kwargs)
        declared.add((queue.name, id(producer.channel)))  # the channel may be another one by now
        return is_new

    producer.maybe_declare = maybe_declare
    try:
        yield
    finally:
        del producer.maybe_declare


def _left_s(call: Call) -> float:
    return max(0.0, call.ends_at - time.monotonic())


def _log_not_reached(error: Exception, pause_s: float) -> None:
    logger.warning("the broker is not reached: %s; trying again in %.1f s", error, pause_s)


def _reason(error: Exception) -> str:
    return "all of this process's connections were busy" if isinstance(error, LimitExceeded) else reason_of(error)


def _fit_soft_limit(options: dict[str, Any]) -> None:
    """Lower a soft time limit that a hard one leaves no room for.

    billiard starts the clock of the hard limit when the soft one fires: with the default soft limit of an hour, a hard
    one of two seconds would never come.
    """
    hard_s, soft_s = options.get("time_limit"), options.get("soft_time_limit") or load().soft_time_limit_s
    if hard_s and soft_s >= hard_s:
        options["soft_time_limit"] = hard_s * _SOFT_FRACTION


def task_options(
    memory: str | int | None, cpu: float | None, retry: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    """Celery's task options with what `@task` takes in people's words; `retry` is for `retry_options`.

    Raises:
        ValueError: what was given and what would be right.
    """
    _fit_soft_limit(options)
    if "autoretry_for" in options:  # all of it in Celery's words, then
        options |= {name: value for name, value in retry.items() if value is not None}
        if "retry_for" in options:
            raise ValueError("want retry_for or Celery's autoretry_for, not both")
    else:
        made = retry_options(**retry)
        if both := made.keys() & options.keys():
            raise ValueError(f"want max_attempts and retry_for or Celery's {', '.join(sorted(both))}, not both")
        options |= made
    if memory is not None:
        options["memory_bytes"] = parse_size(memory)
    if cpu is not None:
        if cpu <= 0:
            raise ValueError(f"want a number of cores above 0, got cpu={cpu!r}")
        options["cpu_cores"] = float(cpu)
    return options
