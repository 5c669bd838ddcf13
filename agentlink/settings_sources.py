"""Where settings come from: `AGENTLINK_*` variables, then `agentlink.toml`; and how what is wrong there is told.

The environment wins over the file, the file over the defaults. The file is `agentlink.toml` in the current folder, or
the one that `AGENTLINK_CONFIG` names. A value that can't be used stops the start with *every* problem in one message.
"""

from __future__ import annotations

import difflib
import os
import stat
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentlink.errors import SettingsError
from agentlink.units import shown

if TYPE_CHECKING:  # `agentlink health` reads the file too, and has no time for this
    from pydantic import ValidationError

ENV_PREFIX = "AGENTLINK_"


def file_values() -> dict[str, Any]:
    """What the file sets. Only one that nobody named may be missing."""
    file = _config_file()
    try:
        if not file.exists() and not os.environ.get(ENV_PREFIX + "CONFIG"):
            return {}
        if not stat.S_ISREG(file.stat().st_mode) and file != Path(os.devnull):
            raise SettingsError([f"{file}: is not a file"])
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError([f"{file}: can't be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise SettingsError([f"{file}: not valid TOML: want its text in UTF-8"]) from None
    except (ValueError, RecursionError) as error:
        raise SettingsError([f"{file}: not valid TOML: {error}"]) from None


def unknown_variables(names: Iterable[str]) -> list[str]:
    """A misspelt variable would otherwise be ignored in silence."""
    known = {f"{ENV_PREFIX}{name}".upper() for name in [*names, "config"]}
    return [
        f"{variable}: is not a setting{_closest(variable, known)}"
        for variable in sorted(os.environ)
        if variable.upper().startswith(ENV_PREFIX) and variable.upper() not in known
    ]


def problems_of(error: ValidationError, names: Iterable[str]) -> list[str]:
    """One line a problem: where the value comes from, and what would be right."""
    problems: list[str] = []
    for detail in error.errors(include_url=False):
        message = detail["msg"].removeprefix("Value error, ")
        if not detail["loc"]:  # a relation between fields: its text names them
            problems += message.splitlines()
            continue
        name = str(detail["loc"][0])
        if detail["type"] == "extra_forbidden":
            message = f"is not a setting{_closest(name, names)}"
        elif not message.startswith("want"):
            message = f"{message[0].lower()}{message[1:]}, got {shown(detail['input'])}"
        problems.append(f"{_source_of(name)}: {message}")
    return problems


def _source_of(name: str) -> str:
    for variable in os.environ:
        if variable.upper() == f"{ENV_PREFIX}{name}".upper():
            return variable
    return f"{name} in {_config_file()}" if _config_file().is_file() else f"{ENV_PREFIX}{name.upper()}"


def _config_file() -> Path:
    return Path(os.environ.get(ENV_PREFIX + "CONFIG") or "agentlink.toml")


def _closest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else f"; known are {', '.join(sorted(known))}"
