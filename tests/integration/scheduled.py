"""A workflow that schedules of the integration tests run."""

from __future__ import annotations

from typing import Any

from tests.integration.sample import append_line
from workflows import workflow

IMPORTS = "tests.integration.sample,tests.integration.scheduled"


@workflow
def noted(path: str, text: str = "ran") -> Any:
    """One line in a ledger."""
    return append_line.si(path, text)
