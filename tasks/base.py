"""The base of every task: what it may declare, and how a call reaches the broker or fails in time."""

from __future__ import annotations

from typing import Any

import redis
from celery import Celery, Task
from kombu.exceptions import OperationalError

from agentlink.broker.errors import BrokerStartError, BrokerUnavailable
from agentlink.broker.server import ensure_running
from agentlink.broker.transport import deadline, register
from agentlink.settings import load
from agentlink.units import format_size, parse_size

# While the broker is away (restarting, say), a call tries again this often until its deadline.
_PUBLISH_RETRY = {"max_retries": 1000, "interval_start": 0.05, "interval_step": 0.05, "interval_max": 0.5}

# Of a hard time limit given alone, the share after which the task is asked to end by itself.
_SOFT_FRACTION = 0.9


class BaseTask(Task):
    """A task that may declare what it needs: the guard plans with it."""

    abstract = True

    #: Memory one call takes at most, in bytes; None: not known.
    memory_bytes: int | None = None
    #: CPU cores one call keeps busy; None: not known.
    cpu_cores: float | None = None

    #: Also how soon a task is sent again after its process was killed; Celery's default is three minutes.
    default_retry_delay = 3


class App(Celery):
    """A Celery app whose calls are accepted within the publish timeout or raise `BrokerUnavailable`."""

    _broker_seen = False

    def __init__(self, main: str, **kwargs: Any) -> None:
        register()
        super().__init__(main, task_cls=BaseTask, **kwargs)

    def send_task(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Send a task by name; `Task.delay` and `apply_async` come through here too.

        Raises:
            BrokerUnavailable: nothing was accepted, and nothing of this call will run later.
        """
        settings = load()
        _fit_soft_limit(kwargs)
        kwargs["retry_policy"] = _PUBLISH_RETRY | (kwargs.get("retry_policy") or {})
        # One half to reach a broker, the other (the socket's timeout) for its answer.
        half_s = settings.publish_timeout_s / 2
        try:
            with deadline(half_s):
                self.need_broker(half_s)
                return super().send_task(name, *args, **kwargs)
        except BrokerUnavailable:
            raise
        except (OperationalError, redis.RedisError, OSError, BrokerStartError) as error:
            raise BrokerUnavailable(settings.url, _reason(error)) from error

    def need_broker(self, timeout_s: float | None = None) -> None:
        """Start the embedded broker if this process is the first to need it.

        Once a process: a broker that goes away later is not brought back from here, its calls fail in time.

        Raises:
            BrokerStartError: with the reason and what to do about it.
        """
        if not self._broker_seen and load().embedded:
            ensure_running(load(), timeout_s)
        self._broker_seen = True


def _reason(error: Exception) -> str:
    if "maxmemory" not in str(error):
        return str(error)
    return (
        f"it is full: broker_memory is {format_size(load().broker_memory_bytes)}; let workers finish what is queued, "
        "wait for results to expire, or raise AGENTLINK_BROKER_MEMORY"
    )


def _fit_soft_limit(options: dict[str, Any]) -> None:
    """Lower a soft time limit that a hard one leaves no room for.

    billiard starts the clock of the hard limit when the soft one fires: with the default soft limit of an hour, a hard
    one of two seconds would never come.
    """
    hard_s, soft_s = options.get("time_limit"), options.get("soft_time_limit") or load().soft_time_limit_s
    if hard_s and soft_s >= hard_s:
        options["soft_time_limit"] = hard_s * _SOFT_FRACTION


def task_options(memory: str | int | None, cpu: float | None, options: dict[str, Any]) -> dict[str, Any]:
    """Celery's task options with what `@task` takes in people's words.

    Raises:
        ValueError: what was given and what would be right.
    """
    _fit_soft_limit(options)
    if memory is not None:
        options["memory_bytes"] = parse_size(memory)
    if cpu is not None:
        if cpu <= 0:
            raise ValueError(f"want a number of cores above 0, got cpu={cpu!r}")
        options["cpu_cores"] = float(cpu)
    return options
