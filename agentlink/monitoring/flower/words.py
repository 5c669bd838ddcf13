"""The arguments of a call as people read them, without secrets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentlink.masking import masked_call


def shown_call(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The arguments of a call of `task` (None: it is not known here), one after the other."""
    known = getattr(task, "parameters", None)
    shown_args, shown_kwargs = masked_call([*known.parameters.values()] if known is not None else [], args, kwargs)
    return ", ".join([*map(repr, shown_args), *(f"{name}={value!r}" for name, value in shown_kwargs.items())])
