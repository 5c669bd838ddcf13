"""A workflow that schedules of the integration tests run."""

from __future__ import annotations

from typing import Any

from celery import chain

from tests.integration.sample import append_line, wait_for_file
from workflows import workflow

IMPORTS = "tests.integration.sample,tests.integration.scheduled"


@workflow
def noted(path: str, text: str = "ran") -> Any:
    """One line in a ledger."""
    return append_line.si(path, text)


@workflow
def held_up(path: str, go: str) -> Any:
    """One line as it begins, and one when the file `go` has come; meanwhile there is a file `go.waits`."""
    waits = wait_for_file.si(go, started=f"{go}.waits")
    return chain(append_line.si(path, "begun"), waits, append_line.si(path, "ended"))
