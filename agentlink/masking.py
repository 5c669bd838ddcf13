"""Secrets do not get into logs, events and pages: values named like one are masked before they are shown.

For what people see only: nothing that a task gets passes through here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from inspect import Parameter
from typing import Any

MASK = "***"

_WORDS = r"token|passw|passphrase|passwd|secret|credential|authorization|cookie|key"
_NAME = re.compile(_WORDS, re.IGNORECASE)
# A number of tokens is no secret, and what people look for.
_COUNT = re.compile(r"tokens(_|$)", re.IGNORECASE)
_OPTION = re.compile(rf"--?[\w-]*(?:{_WORDS})[\w-]*", re.IGNORECASE)

# In text, stricter than in names, so that `KeyError: 'x'` and "no such key: x" stay readable: `name=value` or
# `"name": value`, with the word at the name's end; `Authorization: Bearer value`; the password of an address.
# A quote that does not end was cut off.
_VALUE = r"""(?P<quote>\\?["'])(?:(?!(?P=quote))(?:\\.|.))*(?:(?P=quote))?|[^\s,;&)}\]"']+"""
_PAIR = re.compile(
    r"""(?P<name>\b[\w.-]{0,64}(?:token|password|passwd|passphrase|secret|credentials?|authorization|cookie|key)"""
    rf"""(?:=|\\?["']\s*[:=]\s*))(?P<value>{_VALUE})""",
    re.IGNORECASE,
)
_HEADER = re.compile(r"\b(?P<name>authorization:\s*(?:\w+\s+)?|bearer\s+)[^\s,;\"']+", re.IGNORECASE)
_ADDRESS = re.compile(r"(?P<name>\b[\w+.-]{1,32}://[^\s/:@]{0,256}:)[^\s/@]{1,256}(?=@)")
# Nothing is a secret without one of these; looked for in this way, a line costs a microsecond.
_SUSPICIOUS = (
    "token",
    "passw",
    "passphrase",
    "secret",
    "credential",
    "authorization",
    "bearer",
    "cookie",
    "key",
    "://",
)


def is_secret(name: object) -> bool:
    """Whether a value of this name is one that nobody should read: `api_key`, `DB_PASSWORD`, `authToken`."""
    return isinstance(name, str) and _NAME.search(name) is not None


def is_suspicious(text: str) -> bool:
    """Whether there may be a secret in it: if not, there is none."""
    lowered = text.lower()
    return any(word in lowered for word in _SUSPICIOUS)


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
    if not is_suspicious(text):
        return text
    text = _ADDRESS.sub(rf"\g<name>{MASK}", text)
    text = _HEADER.sub(rf"\g<name>{MASK}", text)
    return _PAIR.sub(_masked_pair, text)


def masked_call(
    parameters: Sequence[Parameter], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """A call's arguments, masked: a positional one goes by the parameter that takes it."""
    named = zip(_names(parameters, len(args)), args, strict=True)
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


def _names(parameters: Sequence[Parameter], count: int) -> list[str]:
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in kinds]
    rest = next((parameter.name for parameter in parameters if parameter.kind == Parameter.VAR_POSITIONAL), "")
    return (names + [rest] * count)[:count]
