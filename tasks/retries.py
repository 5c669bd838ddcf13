"""When a task is tried again after an error, and how long that waits: `@task`'s words, as Celery's options."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from agentlink.units import parse_duration, shown

#: Most trouble that passes (a connection cut, a server starting again) is over in seconds: up to 1, 2, 4, 8 … s.
BACKOFF_S = 1
#: And the end of an outage of hours is noticed within minutes.
BACKOFF_MAX_S = 300
_LONGEST_S = 30 * 86400
_MOST_ATTEMPTS = 1_000


def retry_options(
    retry_for: Iterable[type[BaseException]] | type[BaseException] | None,
    max_attempts: int | None,
    retry_backoff: str | float | None,
    retry_backoff_max: str | float | None,
) -> dict[str, Any]:
    """Celery's options for being tried again; empty where nothing is said.

    Raises:
        ValueError: what was given and what would be right.
    """
    options: dict[str, Any] = {}
    if max_attempts is not None:
        options["max_attempts"] = _attempts(max_attempts)
        options["max_retries"] = max_attempts - 1
    if retry_for is None:
        if retry_backoff is not None or retry_backoff_max is not None:
            raise ValueError("retry_backoff and retry_backoff_max say nothing without retry_for=(SomeError, …)")
        return options
    backoff_s = _whole_seconds("retry_backoff", BACKOFF_S if retry_backoff is None else retry_backoff)
    default_max_s = max(BACKOFF_MAX_S, backoff_s)
    backoff_max_s = _whole_seconds(
        "retry_backoff_max", default_max_s if retry_backoff_max is None else retry_backoff_max
    )
    if backoff_max_s < backoff_s:
        raise ValueError(
            f"want retry_backoff_max of at least retry_backoff ({backoff_s}s), got {shown(retry_backoff_max)}"
        )
    return options | {
        "autoretry_for": _errors(retry_for),
        "retry_backoff": backoff_s,
        "retry_backoff_max": backoff_max_s,
        "retry_jitter": True,  # what failed together must not come back together
    }


def _attempts(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_ATTEMPTS:
        raise ValueError(f"want a whole number of attempts from 1 to {_MOST_ATTEMPTS}, got max_attempts={shown(value)}")
    return value


def _errors(value: object) -> tuple[type[BaseException], ...]:
    errors = (value,) if isinstance(value, type) else tuple(value) if isinstance(value, Iterable) else (value,)
    if not errors or not all(isinstance(error, type) and issubclass(error, Exception) for error in errors):
        raise ValueError(f"want exception classes like (OSError, TimeoutError), got retry_for={shown(value)}")
    return errors


def _whole_seconds(name: str, value: object) -> int:
    """Celery counts the waits in whole seconds, and what is less than one as one."""
    with contextlib.suppress(ValueError):
        seconds = parse_duration(value)
        if 1 <= seconds <= _LONGEST_S and seconds == int(seconds):
            return int(seconds)
    raise ValueError(f"want whole seconds like 1s, 30s or 5m, from 1s to 30d, got {name}={shown(value)}")
