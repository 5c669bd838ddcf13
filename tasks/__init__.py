"""The Celery app, the base task and the task library. `celery -A tasks worker` starts a worker."""

from tasks.app import app, task
from tasks.base import BaseTask
from tasks.errors import TaskError

__all__ = ["BaseTask", "TaskError", "app", "task"]
