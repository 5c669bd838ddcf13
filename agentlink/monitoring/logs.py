"""A worker's log: each line of a task says which run, step and attempt it belongs to, and which worker wrote it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from celery import signals
from celery._state import get_current_task
from celery.worker import state as worker_state

from agentlink import log_lines
from agentlink.broker.streams import attempt_of, run_of
from agentlink.settings import load

#: The name of the worker that this process is or belongs to.
_worker: list[str] = []


def install() -> None:
    """Have workers of this process, and their children, write such lines. Doing it twice changes nothing."""
    signals.worker_init.connect(_remember_worker, weak=False)
    signals.after_setup_logger.connect(_set_up, weak=False)
    signals.after_setup_task_logger.connect(_set_up, weak=False)


def facts_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a line belongs to: the task that runs, or the one that a line of Celery's names; else the worker alone."""
    task: Any = get_current_task()
    if task is not None and task.request.id:
        about = _about(task.name, lambda name: getattr(task.request, name, None))
    elif isinstance(record.args, Mapping) and "id" in record.args:
        # Of the main process: its process has died, say. As a task is received no more is known of it than its id.
        request = worker_state.requests.get(str(record.args["id"]))
        said = {"task": record.args.get("name"), "step": record.args["id"]}
        about = _about(request.name, request.request_dict.get) if request is not None else said
    else:
        about = {}
    return about | ({"worker": _worker[0]} if _worker else {})


def _about(task: str, header: Callable[[str], Any]) -> dict[str, Any]:
    run_id = run_of(header)
    facts = {"task": task, "run": run_id, "step": header("id"), "attempt": attempt_of(header)}
    return {name: fact for name, fact in facts.items() if fact is not None}


def _remember_worker(sender: Any, **_: Any) -> None:
    _worker[:] = [sender.hostname]


def _set_up(logger: logging.Logger, **_: Any) -> None:
    for handler in logger.handlers:
        if not isinstance(handler.formatter, log_lines.TextLines | log_lines.JsonLines):
            text = handler.formatter or logging.Formatter()
            handler.setFormatter(log_lines.formatter(load().log_format, text, facts_of))
