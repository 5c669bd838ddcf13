"""What `@task(concurrency=…, rate=…, key=…)` means: how many calls of a key may run at once, how often one begins."""

from __future__ import annotations

import inspect
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentlink.broker.limits import Limit
from agentlink.units import shown

_MOST = 1_000_000
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_RATE = re.compile(r"([1-9][0-9]{0,8})\s*/\s*([smhd])")
# At high rates so much may come at once: a worker that looks each millisecond could not keep a mean of thousands.
_AHEAD_US = 100_000

Key = str | Callable[..., str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """A task's, and how the key of a call is made of its arguments."""

    most: int
    interval_us: int
    #: None: the task's name.
    key: Key | None
    signature: inspect.Signature

    def of_call(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Limit:
        """The limit of one call of the task of this name.

        Raises:
            TypeError: the arguments don't fit the task's parameters.
            ValueError: the key can't be made of them.
        """
        ahead_us = max(0, _AHEAD_US - self.interval_us) if self.interval_us else 0
        key = name if self.key is None else self._made_of(self.key, name, args, kwargs)
        return Limit(key=key, most=self.most, interval_us=self.interval_us, ahead_us=ahead_us)

    def _made_of(self, key: Key, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        try:
            made = key.format_map(bound.arguments) if isinstance(key, str) else key(*bound.args, **bound.kwargs)
        except Exception as error:
            raise ValueError(f"{name}: the key of a call can't be made of its arguments by {shown(key)}") from error
        if not isinstance(made, str):
            raise ValueError(f"{name}: want a text for the key of a call, got {shown(made)} from {shown(key)}")  # noqa: TRY004
        return made


def limits_of(
    function: Callable[..., Any], concurrency: object, rate: object, key: object, options: Mapping[str, Any]
) -> Limits | None:
    """A task's limits from `@task`'s words; None where nothing is said. `options` are the task's others.

    Raises:
        ValueError: what was given and what would be right.
    """
    if concurrency is None and rate is None:
        if key is not None:
            raise ValueError(f"key={shown(key)} says nothing without concurrency or rate")
        return None
    if concurrency is not None and options.get("acks_late") is False:
        raise ValueError("want acks_late with concurrency: a call's place is free when its message is acknowledged")
    signature = inspect.signature(function)
    if options.get("bind"):
        signature = signature.replace(parameters=list(signature.parameters.values())[1:])
    most = 0 if concurrency is None else _most(concurrency)
    interval_us = 0 if rate is None else _interval_us(rate)
    return Limits(most=most, interval_us=interval_us, key=_key(key, signature), signature=signature)


def _most(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
        raise ValueError(f"want a whole number of calls from 1 to {_MOST}, got concurrency={shown(value)}")
    return value


def _interval_us(value: object) -> int:
    match = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    interval_us = round(_UNITS_S[match[2]] * 1_000_000 / int(match[1])) if match else 0
    if not interval_us:
        raise ValueError(f"want a rate like 5/s, 60/m or 1000/h, up to 1000000/s, got rate={shown(value)}")
    return interval_us


def _key(value: object, signature: inspect.Signature) -> Key | None:
    if value is None or (callable(value) and not isinstance(value, str)):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'want a key like "model:{{model}}" or a function of the arguments, got key={shown(value)}')
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(value) if field is not None]
    except ValueError as error:
        raise ValueError(f"want a key like {'model:{model}'!r}, got key={shown(value)}: {error}") from None
    for field in fields:
        name = re.split(r"[.\[]", field, maxsplit=1)[0]
        if name not in signature.parameters:
            known = ", ".join(signature.parameters) or "none"
            raise ValueError(f"key={shown(value)} names {shown(name)}; the task's parameters are: {known}")
    return value
