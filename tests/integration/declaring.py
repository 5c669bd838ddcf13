"""Workflows that say themselves when they run."""

from __future__ import annotations

from typing import Any

from tests.integration.sample import add
from workflows import workflow

IMPORTS = "tests.integration.sample,tests.integration.declaring"


@workflow(every="1s")
def each_second() -> Any:
    return add.s(1, 1)


def doubled(number: int = 4) -> tuple[tuple[int], dict[str, Any]]:
    """The arguments as a call completes them: once."""
    return (2 * number,), {}


@workflow(schedule="0 7 * * MON", timezone="Europe/Berlin", missed="once", prepare=doubled)
def each_monday(number: int = 4) -> Any:
    return add.s(number, 0)
