"""What each field of a job may be: a function for each gives the value in its final form, or says what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from agentlink.units import parse_duration, parse_size, shown
from tasks.command_errors import CommandInvalid
from tasks.command_order import TIMEOUT_MAX_S, checked_environment, checked_words

RETRIES_MAX = 100
_CORES_MAX = 100_000
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _command(value: Any) -> list[str] | str:
    try:
        if isinstance(value, str) and value.strip():
            checked_words(value, shell=True)  # noqa: S604 - nothing is run here
            return value
        if isinstance(value, list):
            return checked_words(value, shell=False)
    except CommandInvalid as error:
        raise ValueError(error.problem) from None
    raise ValueError(f'want a text for the shell or a list like ["ls", "-l"], got {shown(value)}')


def _needs(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"want a list of jobs' names, got {shown(value)}")
    twice = sorted({name for name in value if value.count(name) > 1})
    if twice:
        raise ValueError(f"{twice[0]!r} is there twice")
    return value


def _memory(value: Any) -> int:
    if (size_bytes := parse_size(value)) == 0:
        raise ValueError(f"want a size above 0, got {shown(value)}")
    return size_bytes


def _cpu(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= _CORES_MAX:
        raise ValueError(f"want a number of cores above 0, got {shown(value)}")
    return float(value)


def _timeout(value: Any) -> float:
    if not 0 < (seconds := parse_duration(value)) <= TIMEOUT_MAX_S:
        raise ValueError(f"want a time above 0 and of at most 365d, got {shown(value)}")
    return seconds


def _retries(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= RETRIES_MAX:
        raise ValueError(f"want a whole number from 0 to {RETRIES_MAX}, got {shown(value)}")
    return value


def _env(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError(  # noqa: TRY004 - as all that is wrong here
            f"want a table of variables, got {shown(value)}"
        )
    try:
        return checked_environment({name: _text(one) for name, one in value.items()})
    except CommandInvalid as error:
        raise ValueError(error.problem) from None


def _matrix(value: Any) -> dict[str, list[str]]:
    if not isinstance(value, dict) or not value or not all(isinstance(one, list) and one for one in value.values()):
        raise ValueError(f'want a table of lists like {{ python = ["3.11", "3.12"] }}, got {shown(value)}')
    made = {}
    for name, values in value.items():
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"want names of letters, digits and _, since they become variables, got {shown(name)}")
        made[name] = [_text(one) for one in values]
        if len(set(made[name])) < len(values):
            raise ValueError(f"{name} has a value twice")
    try:
        checked_environment({name: text for name, texts in made.items() for text in texts})
    except CommandInvalid as error:
        raise ValueError(error.problem) from None
    return made


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    raise ValueError(f"want a text, a number or true or false, got {shown(value)}")


#: By the fields' names; they raise ValueError.
READERS: dict[str, Callable[[Any], Any]] = {
    "command": _command,
    "needs": _needs,
    "memory": _memory,
    "cpu": _cpu,
    "timeout": _timeout,
    "retries": _retries,
    "env": _env,
    "matrix": _matrix,
}
