"""The same task as `benchmarks.broker_stock` has, on AgentLink."""

from __future__ import annotations

from tasks import task


@task
def noop(number: int) -> int:
    return number
