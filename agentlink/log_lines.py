"""How a line of the log looks: for people or as JSON, with what it belongs to, and without secrets."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any

from agentlink.masking import masked, masked_text

#: What a line belongs to (its run, say), by name; nothing of what has no value.
Facts = Callable[[logging.LogRecord], dict[str, Any]]

# What every record has, and what Celery adds for its own formatters; the rest was given as `extra=`.
_OWN = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "data", "task_id", "task_name"}


def _nothing(_: logging.LogRecord) -> dict[str, Any]:
    return {}


class TextLines(logging.Formatter):
    """Lines as another formatter makes them, each with its facts in brackets at its end."""

    def __init__(self, inner: logging.Formatter, facts: Facts = _nothing) -> None:
        super().__init__()
        self._inner, self._facts = inner, facts

    def format(self, record: logging.LogRecord) -> str:
        """The line; a traceback follows it."""
        line, new_line, traceback = masked_text(self._inner.format(record)).partition("\n")
        facts = self._facts(record)
        # An id that stands in the line is not said again; nor is the task, whose name does.
        said = [
            f"{name}={fact}"
            for name, fact in facts.items()
            if name != "task" and (name not in ("run", "step") or fact not in line)
        ]
        return f"{line} ({' '.join(said)}){new_line}{traceback}" if said else f"{line}{new_line}{traceback}"


class JsonLines(logging.Formatter):
    """One JSON object a line: when, how grave, who says it, what, and its facts; what was given as `extra=` too."""

    def __init__(self, facts: Facts = _nothing, *, process: str | None = None) -> None:
        super().__init__()
        self._facts, self._process = facts, process

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "at": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{record.msecs:03.0f}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": masked_text(record.getMessage()),
            "process": self._process or record.processName,
            "pid": record.process,
            **self._facts(record),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = masked_text(self.formatException(record.exc_info))
        elif record.exc_text:
            line["error"] = masked_text(record.exc_text)
        extra = masked({name: value for name, value in vars(record).items() if name not in _OWN})
        return json.dumps({**extra, **line}, ensure_ascii=False, default=str)


def formatter(
    log_format: str, text: logging.Formatter, facts: Facts = _nothing, *, process: str | None = None
) -> logging.Formatter:
    """The one that the setting `log_format` asks for; `text` makes lines for people."""
    return JsonLines(facts, process=process) if log_format == "json" else TextLines(text, facts)
