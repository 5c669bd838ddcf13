"""What is seen of a worker, installed in every one: Celery imports this by its name (`imports` in `celeryconfig`)."""

from __future__ import annotations

from agentlink.monitoring import health_beat, logs, metrics_server, worker_step
from tasks import app

health_beat.install(app)
logs.install()
worker_step.install(app)
metrics_server.install(app)
