"""`agentlink logs`: what a run's steps have logged and put out, as lines of a terminal or of JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict

import redis

from agentlink.broker.streams import EMIT, LOG
from workflows import StreamItem
from workflows.streams import follow, said_so_far

# A terminal obeys control characters; what a step read somewhere is not to move its cursor.
_SHOWN_AS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def items(client: redis.Redis, run_id: str, *, live: bool) -> Iterable[StreamItem]:
    """What a run's steps have said; live: also what they say from now on, until the run has ended.

    Raises:
        RunUnknown: there is no such run.
    """
    return follow(client, run_id) if live else said_so_far(client, run_id, (EMIT, LOG))


def as_json(items: Iterable[StreamItem]) -> Iterator[str]:
    """A line for each."""
    return (f"{json.dumps(asdict(item), ensure_ascii=False)}\n" for item in items)


def as_text(items: Iterable[StreamItem]) -> Iterator[str]:
    """For people: text as it was put out, everything else in lines of its own."""
    line_is_open = False
    attempts: dict[tuple[str, int], int] = {}
    said_last: tuple[str, int] | None = None
    for item in items:
        step = (item.step_id, item.replacements)
        begins_again = item.attempt > attempts.setdefault(step, item.attempt)
        goes_on = item.is_text and step == said_last and not begins_again
        if line_is_open and not goes_on:
            yield "\n"
        if begins_again:
            yield f"-- {_short(item)} begins again (attempt {item.attempt})\n"
        attempts[step], said_last = item.attempt, step
        text = _text(item).translate(_SHOWN_AS)
        yield text
        line_is_open = not text.endswith("\n") if text else goes_on and line_is_open


def write(pieces: Iterable[str], out: Callable[[str], object]) -> None:
    """Write pieces of text as they come, and end the last line."""
    last = "\n"
    for piece in pieces:
        out(piece)
        last = piece or last
    if not last.endswith("\n"):
        out("\n")


def _text(item: StreamItem) -> str:
    if item.kind == LOG:
        return f"{time.strftime('%H:%M:%S', time.localtime(item.at))} {_short(item)}: {item.data}\n"
    return str(item.data) if item.is_text else f"{json.dumps(item.data, ensure_ascii=False)}\n"


def _short(item: StreamItem) -> str:
    return item.task.rsplit(".", 1)[-1]
