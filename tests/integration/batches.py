"""Workflows with a batch among their steps."""

from __future__ import annotations

from typing import Any

from celery import chain, chord

from tasks import task
from tests.integration.sample import add, total
from workflows import batch, workflow


@task
def count_jobs(result: dict[str, Any]) -> int:
    return len(result["jobs"])


@workflow
def between(file: str) -> Any:
    return chain(add.si(1, 1), batch.si(file), count_jobs.s(), add.s(10))


@workflow
def beside(file: str) -> Any:
    return chord([chain(batch.si(file), count_jobs.s()), add.si(1, 1)], total.s())


@workflow
def last(file: str) -> Any:
    return chain(add.si(1, 1), batch.si(file))
