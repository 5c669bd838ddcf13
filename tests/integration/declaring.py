"""Workflows that say themselves when they run."""

from __future__ import annotations

from typing import Any

from tests.integration.sample import add
from workflows import workflow

IMPORTS = "tests.integration.sample,tests.integration.declaring"


@workflow(every="1s")
def each_second() -> Any:
    return add.s(1, 1)


@workflow(schedule="0 7 * * MON", timezone="Europe/Berlin", missed="once")
def each_monday() -> Any:
    return add.s(1, 1)
