"""What may be asked of `tasks.command`: each function gives what it takes in its final form, or says what is wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from agentlink.units import parse_duration
from tasks.command_errors import CommandInvalid


def checked_words(argv: Sequence[str] | str, *, shell: bool) -> list[str]:
    """The program's name and its arguments; `/bin/sh` and its own for a text with `shell`."""
    if shell:
        if not isinstance(argv, str):
            raise CommandInvalid(f"with shell=True want one text like 'ls | wc -l', got {argv!r}")
        return ["/bin/sh", "-c", _text(argv, "the text")]
    if isinstance(argv, str):
        raise CommandInvalid(f"want a list like ['ls', '-l'], or shell=True for one text, got {argv!r}")
    if not isinstance(argv, Sequence) or not argv:
        raise CommandInvalid(f"want a list with the program's name first, got {argv!r}")
    return [_text(word, f"item {place}") for place, word in enumerate(argv)]


def checked_folder(cwd: str | Path | None) -> str | None:
    """The folder to run in; None for the one that this process is in."""
    return None if cwd is None else _text(os.fspath(cwd), "cwd")


def checked_environment(env: Mapping[str, str] | None) -> dict[str, str]:
    """The variables to add."""
    added = {
        _text(name, "the name of a variable"): _text(value, f"the variable {name}")
        for name, value in (env or {}).items()
    }
    for name in added:
        if not name or "=" in name:
            raise CommandInvalid(f"the name of a variable can't be {name!r}")
    return added


def checked_timeout(timeout_s: float | str | None) -> float | None:
    """Seconds; None for no limit."""
    if timeout_s is None:
        return None
    try:
        seconds = parse_duration(timeout_s)
    except ValueError as error:
        raise CommandInvalid(f"timeout: {error}") from None
    if seconds == 0:
        raise CommandInvalid(f"want a timeout above 0, got {timeout_s!r}")
    return seconds


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise CommandInvalid(f"{what} must be a text, got {value!r}")
    try:
        encoded = os.fsencode(value)
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise CommandInvalid(f"{what} has a character that no program can be given: {value!r}")
    return value
