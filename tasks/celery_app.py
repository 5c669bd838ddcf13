"""The Celery app: how its calls reach the broker, or fail in time."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import redis
from celery import Celery
from kombu.exceptions import LimitExceeded, OperationalError

from agentlink.broker import fanout
from agentlink.broker.calls import Call, current_bundle, deadline, together
from agentlink.broker.errors import BrokerStartError, BrokerUnavailable, reason_of
from agentlink.broker.limits import LIMIT
from agentlink.broker.results import PATIENCE_S
from agentlink.broker.server import ensure_running
from agentlink.broker.transport import register
from agentlink.settings import load
from tasks.base import BaseTask
from tasks.large_arguments import put_away
from tasks.options import declare, fit_soft_limit

logger = logging.getLogger(__name__)

# While the broker is away (restarting, say), a call tries again this often until its deadline.
_PUBLISH_RETRY = {"max_retries": 1000, "interval_start": 0.05, "interval_step": 0.05, "interval_max": 0.5}

# A task that has to send on what comes next tries to reach it this often.
_TASK_RECONNECT = {"interval_start": 0.1, "interval_step": 0.5, "interval_max": 5.0}


class App(Celery):
    """A Celery app whose calls are accepted within the publish timeout or raise `BrokerUnavailable`."""

    amqp_cls = "tasks.shown_arguments:AMQP"
    control_cls = "tasks.control:Control"
    events_cls = "tasks.events:Events"
    _broker_seen = False

    def __init__(self, main: str, **kwargs: Any) -> None:
        register()
        super().__init__(main, task_cls=BaseTask, **kwargs)

    def send_task(self, name: str, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Send a task by name; `Task.delay` and `apply_async` come through here too.

        `memory="1GB"` and `cpu=2`, among the options of a call or set on a signature, hold for this call in place of
        what its task declares.

        Raises:
            ValueError: one of these makes no sense; it says what would.
            BrokerUnavailable: nothing was accepted, and nothing of this call will run later.
            FanOutExceeded: the same; a task's run, or the agent that calls, has more steps by now than it may.
            ValueError: the task is limited, and the key can't be made of the arguments.
            ArgumentNotStored: the same; an argument is too large for a message, and there is no room for its file.
        """
        fit_soft_limit(options)
        declare(options)
        if (sender := self.current_worker_task) is not None:
            fanout.count(sender.request, options)
        else:
            fanout.count_call(options)
        if (limits := getattr(self.tasks.get(name), "limits", None)) is not None:
            options[LIMIT] = limits.of_call(name, args or (), kwargs or {})
        args, kwargs = put_away(self, name, args, kwargs, options)
        options["retry_policy"] = _PUBLISH_RETRY | (options.get("retry_policy") or {})
        with self.producer_or_acquire(options.pop("producer", None)) as producer:
            return super().send_task(name, args, kwargs, *more, producer=producer, **options)

    def producer_or_acquire(self, producer: Any = None) -> AbstractContextManager[Any]:
        """Celery's, for everything it publishes at once: one call, or all of a group.

        What is published inside reaches the broker together, within the publish timeout or not at all.
        """
        # Canvases in each other share the outermost's: were each level to take another, ten levels, or as many threads
        # with two, would have all of a process's producers, and wait for one more.
        bundle = current_bundle.get()
        producer = producer or (bundle and bundle.producer)
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
                    together(producer),
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
