"""What a task, or one call, may say of itself in people's words, and what that is in Celery's."""

from __future__ import annotations

from typing import Any

from agentlink.settings import load
from agentlink.units import parse_size
from resource_guard.reservations import DECLARED_HEADER
from tasks.retries import retry_options

# Of a hard time limit given alone, the share after which the task is asked to end by itself.
_SOFT_FRACTION = 0.9


def fit_soft_limit(options: dict[str, Any]) -> None:
    """Lower a soft time limit that a hard one leaves no room for.

    billiard starts the clock of the hard limit when the soft one fires: with the default soft limit of an hour, a hard
    one of two seconds would never come.
    """
    hard_s, soft_s = options.get("time_limit"), options.get("soft_time_limit") or load().soft_time_limit_s
    if hard_s and soft_s >= hard_s:
        options["soft_time_limit"] = hard_s * _SOFT_FRACTION


def declare(options: dict[str, Any]) -> None:
    """Have what one call declares travel in its message's headers."""
    needs = _needs(options.pop("memory", None), options.pop("cpu", None))
    if needs != (None, None):
        options["headers"] = (options.get("headers") or {}) | {DECLARED_HEADER: list(needs)}


def _needs(memory: str | int | None, cpu: float | None) -> tuple[int | None, float | None]:
    if cpu is not None and cpu <= 0:
        raise ValueError(f"want a number of cores above 0, got cpu={cpu!r}")
    return None if memory is None else parse_size(memory), None if cpu is None else float(cpu)


def task_options(
    memory: str | int | None, cpu: float | None, retry: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    """Celery's task options with what `@task` takes in people's words; `retry` is for `retry_options`.

    Raises:
        ValueError: what was given and what would be right.
    """
    fit_soft_limit(options)
    if "autoretry_for" in options:  # all of it in Celery's words, then
        options |= {name: value for name, value in retry.items() if value is not None}
        if "retry_for" in options:
            raise ValueError("want retry_for or Celery's autoretry_for, not both")
    else:
        made = retry_options(**retry)
        if both := made.keys() & options.keys():
            raise ValueError(f"want max_attempts and retry_for or Celery's {', '.join(sorted(both))}, not both")
        options |= made
    needs = zip(("memory_bytes", "cpu_cores"), _needs(memory, cpu), strict=True)
    return options | {name: value for name, value in needs if value is not None}
