"""A no-op and its chord as a workflow, on AgentLink."""

from __future__ import annotations

from typing import Any

from celery import chord

from tasks import task
from workflows import workflow


@task
def noop(number: int) -> int:
    return number


@task
def count(numbers: list[int]) -> int:
    return len(numbers)


@workflow
def wide(width: int) -> Any:
    return chord([noop.s(number) for number in range(width)], count.s())
