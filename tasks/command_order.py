"""What may be asked of `tasks.command`: each function gives what it takes in its final form, or says what is wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from agentlink.units import parse_duration, shown
from tasks.command_errors import CommandInvalid

# Longer than a worker may let any task run, and short enough for every clock.
TIMEOUT_MAX_S = 365 * 86400.0


def checked_words(argv: Sequence[str] | str, *, shell: bool) -> list[str]:
    """The program's name and its arguments; `/bin/sh` and its own for a text with `shell`."""
    if not isinstance(shell, bool):
        raise CommandInvalid(f"want shell to be true or false, got {shown(shell)}")
    if shell:
        if not isinstance(argv, str):
            raise CommandInvalid(f"with shell=True want one text like 'ls | wc -l', got {shown(argv)}")
        return ["/bin/sh", "-c", _text(argv, "the text")]
    if isinstance(argv, str):
        raise CommandInvalid(f"want a list like ['ls', '-l'], or shell=True for one text, got {shown(argv)}")
    if not isinstance(argv, Sequence) or not argv or argv[0] == "":
        raise CommandInvalid(f"want a list with the program's name first, got {shown(argv)}")
    return [_text(word, f"item {place}") for place, word in enumerate(argv)]


def checked_folder(cwd: str | Path | None) -> str | None:
    """The folder to run in; None for the one that this process is in."""
    if cwd is None:
        return None
    folder = _text(os.fspath(cwd) if isinstance(cwd, os.PathLike) else cwd, "cwd")
    if not folder:
        raise CommandInvalid("want a folder as cwd, or None for the one the worker is in, got ''")
    return folder


def checked_environment(env: Mapping[str, str] | None) -> dict[str, str]:
    """The variables to add."""
    if env is None:
        return {}
    if not isinstance(env, Mapping):
        raise CommandInvalid(f"want the variables to add as a dict of texts, got {shown(env)}")
    added = {
        _text(name, "the name of a variable"): _text(value, f"the variable {shown(name)}")
        for name, value in env.items()
    }
    for name in added:
        if not name or "=" in name:
            raise CommandInvalid(f"the name of a variable can't be {shown(name)}")
    return added


def checked_stdin(stdin: str | None) -> bytes | None:
    """What the program reads; None for nothing."""
    if stdin is None:
        return None
    if not isinstance(stdin, str):
        raise CommandInvalid(f"want a text for the program to read, got {shown(stdin)}")
    return stdin.encode(errors="surrogatepass")


def checked_timeout(timeout_s: float | str | None) -> float | None:
    """Seconds; None for no limit."""
    if timeout_s is None:
        return None
    try:
        seconds = parse_duration(timeout_s)
    except ValueError as error:
        raise CommandInvalid(f"timeout: {error}") from None
    if not 0 < seconds <= TIMEOUT_MAX_S:
        raise CommandInvalid(f"want a timeout above 0 and of at most 365d, got {shown(timeout_s)}")
    return seconds


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise CommandInvalid(f"{what} must be a text, got {shown(value)}")
    try:
        encoded = os.fsencode(value)
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise CommandInvalid(f"{what} has a character that no program can be given: {shown(value)}")
    return value
