"""Secrets do not get into logs, events and pages: values named like one are masked before they are shown.

For what people see only: nothing that a task gets passes through here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

MASK = "***"

_WORDS = r"token|passw|passphrase|passwd|secret|credential|authorization|cookie|key"
_NAME = re.compile(_WORDS, re.IGNORECASE)
# A number of tokens is no secret, and what people look for.
_COUNT = re.compile(r"tokens(_|$)", re.IGNORECASE)
_OPTION = re.compile(rf"--?[\w-]*(?:{_WORDS})[\w-]*", re.IGNORECASE)

# In text, stricter than in names, so that `KeyError: 'x'` and "no such key: x" stay readable: `name=value` or
# `"name": value`, with the word at the name's end; `Authorization: Bearer value`; the password of an address.
_VALUE = r"""(?P<quote>\\?["'])(?:(?!(?P=quote)).)*(?P=quote)|[^\s,;&)}\]"']+"""
_PAIR = re.compile(
    r"""(?P<name>\b[\w.-]*(?:token|password|passwd|passphrase|secret|credentials?|authorization|cookie|key)"""
    rf"""(?:=|\\?["']\s*[:=]\s*))(?P<value>{_VALUE})""",
    re.IGNORECASE,
)
_HEADER = re.compile(r"\b(?P<name>authorization:\s*(?:\w+\s+)?|bearer\s+)[^\s,;\"']+", re.IGNORECASE)
_ADDRESS = re.compile(r"(?P<name>\b[\w+.-]+://[^\s/:@]*:)[^\s/@]+(?=@)")
# One look tells of nearly every line that nothing is in it.
_SUSPICIOUS = re.compile(r"token|passw|passphrase|secret|credential|authorization|bearer|cookie|key|://", re.IGNORECASE)


def is_secret(name: object) -> bool:
    """Whether a value of this name is one that nobody should read: `api_key`, `DB_PASSWORD`, `authToken`."""
    return isinstance(name, str) and _NAME.search(name) is not None


def masked(value: Any) -> Any:
    """`value` (whatever JSON can hold) as it may be shown: secrets, found by their names and in texts, are `***`."""
    if isinstance(value, str):
        return masked_text(value)
    if isinstance(value, Mapping):
        return {name: _masked_as(name, part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return _masked_items(value)
    return value


def masked_text(text: str) -> str:
    """`text` with what looks like a secret in it as `***`: `token=…`, `"api_key": …`, passwords in addresses."""
    if _SUSPICIOUS.search(text) is None:
        return text
    text = _ADDRESS.sub(rf"\g<name>{MASK}", text)
    text = _HEADER.sub(rf"\g<name>{MASK}", text)
    return _PAIR.sub(_masked_pair, text)


def masked_call(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call of `function`, masked: a positional one goes by its parameter's name."""
    named = zip(_names(function, len(args)), args, strict=True)
    return [_masked_as(name, value) for name, value in named], masked(kwargs)


def _masked_as(name: object, value: Any) -> Any:
    if value is None or isinstance(value, bool) or not is_secret(name):
        return masked(value)
    if isinstance(value, int | float) and _COUNT.search(str(name)):
        return value
    return MASK


def _masked_items(items: list[Any] | tuple[Any, ...]) -> list[Any]:
    """As the words of a command line: what follows `--password` is one."""
    made: list[Any] = []
    secret_follows = False
    for item in items:
        made.append(MASK if secret_follows and isinstance(item, str) else masked(item))
        secret_follows = isinstance(item, str) and _OPTION.fullmatch(item) is not None
    return made


def _masked_pair(found: re.Match[str]) -> str:
    quote = found["quote"] or ""
    return f"{found['name']}{quote}{MASK}{quote}"


def _names(function: Callable[..., Any], count: int) -> list[str]:
    try:
        parameters = list(signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in kinds]
    rest = next((parameter.name for parameter in parameters if parameter.kind == Parameter.VAR_POSITIONAL), "")
    return (names + [rest] * count)[:count]
