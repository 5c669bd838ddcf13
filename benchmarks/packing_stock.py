"""The same on a plain Celery app: no AgentLink in it."""

from __future__ import annotations

import os

from celery import Celery

from benchmarks.packing_load import KINDS, holder

app = Celery("stock", broker=os.environ["STOCK_URL"], backend=os.environ["STOCK_URL"])
app.conf.update(
    task_acks_late=True,
    task_default_queue="cpu",
    worker_prefetch_multiplier=1,  # so that no task waits behind a long one while a process is idle
    broker_connection_retry_on_startup=True,
)

TASKS = [app.task(name=f"packing.{kind[0]}")(holder(*kind)) for kind in KINDS]
