"""Whether the arguments of a call fit the parameters of what is called, and what to say where they don't."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tasks.errors import ArgumentsUnfit


def check(name: str, signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Compare a call's arguments with the parameters of what is called.

    Raises:
        ArgumentsUnfit: what is wrong with them, and what would fit.
    """
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ArgumentsUnfit(name, f"{error}; it takes {shown(signature)}") from None


def are_taken_by(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a function without a body takes these arguments."""
    try:
        function(*args, **kwargs)
    except TypeError:
        return False
    return True


def shown(signature: inspect.Signature) -> str:
    """The parameters as they were written: annotations that were kept as text are not put into quotes."""
    parameters = [each.replace(annotation=_plain(each.annotation)) for each in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=_plain(signature.return_annotation)))


class _Text(str):
    """Text that is shown as it is."""

    __slots__ = ()
    __repr__ = str.__str__


def _plain(annotation: Any) -> Any:
    return _Text(annotation) if isinstance(annotation, str) else annotation
