"""`agentlink dead`: the dead letters, for a person to read, send again or drop. Starts nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import redis
from rich.console import Console
from rich.markup import escape

import workflows  # noqa: F401 - it has a say when a letter of a run is sent again
from agentlink.broker import dead_letters
from agentlink.broker.dead_letters import DeadLetter
from agentlink.console import print_list


def chosen(
    client: redis.Redis, prefixes: Iterable[str], *, all_of_them: bool, task: str | None, text: str | None
) -> list[DeadLetter]:
    """The letters that a command line names: by what their ids begin with, or all that the filters leave.

    Raises:
        LetterUnknown, LetterAmbiguous: an id names no letter, or several; then nothing is to be done.
    """
    if all_of_them:
        return list(dead_letters.find(client, task=task, text=text))
    letters = {letter.id: letter for letter in (dead_letters.read(client, prefix) for prefix in prefixes)}
    return list(letters.values())


def show_list(client: redis.Redis, letters: list[DeadLetter], console: Console) -> None:
    """Print one line a letter; ids as short as they can be to be told apart."""
    if not letters:
        console.print("no dead letters")
        return
    id_length = dead_letters.prefix_length(client)
    rows = [
        (
            letter.id[:id_length],
            letter.task.rsplit(".", 1)[-1],
            letter.queue,
            str(letter.attempts),
            _when(letter.buried_at),
            letter.reason,
        )
        for letter in letters
    ]
    print_list(console, ("id", "task", "queue", "attempts", "when", "why"), rows)


def everything(client: redis.Redis, prefix: str) -> dict[str, Any]:
    """All there is of the letter whose id begins so, ready for JSON.

    Raises:
        LetterUnknown, LetterAmbiguous: the id names no letter, or several.
    """
    letter = dead_letters.read(client, prefix)
    return asdict(letter) | {"message": dead_letters.message_of(client, letter)}


def show(facts: dict[str, Any], console: Console) -> None:
    """Print all there is of a letter for a person."""
    message = facts["message"]
    body = message.pop("body")
    readable = isinstance(body, list)
    lines = {
        "id": facts["id"],
        "task": facts["task"],
        "queue": facts["queue"],
        "run": facts["run_id"] or "none",
        "attempts": facts["attempts"],
        "died": _when(facts["buried_at"]),
        "why": facts["reason"],
        "signal": facts["signal"],
        "arguments": json.dumps(body[:2], ensure_ascii=False) if readable else facts["arguments"],
        "then": json.dumps(body[2], ensure_ascii=False) if readable and any(body[2].values()) else None,
        "message": json.dumps(message, ensure_ascii=False, indent=2),
        "traceback": facts["traceback"],
    }
    for name, value in lines.items():
        if value is not None:
            console.print(f"{name:<9} {escape(str(value))}", highlight=False, soft_wrap=True)


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
