"""A plain Celery app with kombu's own transport and Celery's own results, to compare with: no AgentLink in it."""

from __future__ import annotations

import os

from celery import Celery

app = Celery("stock", broker=os.environ["STOCK_URL"], backend=os.environ["STOCK_URL"])
app.conf.update(
    task_acks_late=True,
    task_default_queue="cpu",
    worker_prefetch_multiplier=4,  # Celery's default
    broker_connection_retry_on_startup=True,
)


@app.task
def noop(number: int) -> int:
    return number


@app.task
def count(numbers: list[int]) -> int:
    return len(numbers)
