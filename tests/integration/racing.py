"""Workflows that are cancelled and resumed at awkward moments. Each step leaves a line in a ledger."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from celery import chain, chord, group

from tasks import task
from tests.integration.sample import append_line
from tests.integration.steered import done, fails_until, joined, lets_be, then
from workflows import wait_for, workflow

IMPORTS = "tests.integration.racing,tests.integration.steered"


@workflow
def fails_early(ledger: str, cure: str, count: int) -> Any:
    """A wide chord of chains, whose first member fails while the others wait in the queue."""
    others = [chain(done.si(ledger, f"{number}"), then.s(ledger, f"{number}b")) for number in range(count)]
    return chord([fails_until.si(ledger, cure), *others], joined.s(ledger))


@task(bind=True, max_retries=5)
def tries_later(self: Any, ledger: str, go: str) -> str:
    """Is retried in two seconds; its second attempt waits for the file `go`."""
    append_line.run(ledger, f"tries {self.request.retries}")
    if self.request.retries == 0 and not Path(f"{go}.again").exists():
        raise self.retry(countdown=2)
    return lets_be.run(ledger, go, "tried")


@workflow
def fails_beside_a_retry(ledger: str, cure: str, go: str) -> Any:
    return chord([tries_later.si(ledger, go), fails_until.si(ledger, cure)], joined.s(ledger))


@task(bind=True)
def goes_on_as(self: Any, ledger: str, cure: str) -> Any:
    """Replaces itself by a chain, the middle of which fails at first."""
    raise self.replace(chain(done.si(ledger, "part"), fails_until.si(ledger, cure), done.si(ledger, "end")))


@workflow
def replaced(ledger: str, cure: str) -> Any:
    return chain(done.si(ledger, "first"), goes_on_as.si(ledger, cure), then.s(ledger, "last"))


@workflow
def inner(ledger: str) -> Any:
    return chain(done.si(ledger, "inner"), done.si(ledger, "inner end"))


@workflow
def fails_before_a_run(ledger: str, cure: str, go: str) -> Any:
    """A step fails; after another, which is still running, comes a run."""
    fails = chain(lets_be.si(ledger, f"{go}.fails", "failing"), fails_until.si(ledger, cure))
    return group(fails, chain(lets_be.si(ledger, go, "waited"), inner.si(ledger)))


@workflow
def slowly_built(ledger: str, building: str, go: str) -> Any:
    """It does not let itself be interrupted while it builds."""
    Path(building).touch()
    deadline = time.monotonic() + 20
    while not Path(go).exists() and time.monotonic() < deadline:
        try:
            time.sleep(0.01)
        except Exception:  # noqa: BLE001 - that is what it is for
            continue
    append_line.run(ledger, "built")
    return chain(done.si(ledger, "a"), done.si(ledger, "b"))


@workflow
def asks(ledger: str, cure: str, busy: str) -> Any:
    """A step waits for a person, beside one that keeps its only process busy and then fails."""
    waits = chain(wait_for("approval"), then.s(ledger, "approved"))
    return chord([waits, chain(lets_be.si(ledger, busy, "busy"), fails_until.si(ledger, cure))], joined.s(ledger))


@workflow
def noted(run_id: str, failure: dict[str, Any]) -> Any:
    ledger, _, _ = failure["message"].partition(" ")
    return done.si(ledger, "made up for")


@task
def needs_cure(ledger: str, cure: str) -> str:
    if not Path(cure).exists():
        raise RuntimeError(f"{ledger} is not cured")
    return "cured"


@workflow(on_failure=noted)
def made_up_for(ledger: str, cure: str) -> Any:
    return chain(done.si(ledger, "a"), needs_cure.si(ledger, cure))


@workflow
def empty() -> Any:
    return chain()
