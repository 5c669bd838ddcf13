"""One validated, frozen settings object from `AGENTLINK_*` variables and `agentlink.toml`.

The environment wins over the file, the file over the defaults. The file is `agentlink.toml` in the current folder, or
the one that `AGENTLINK_CONFIG` names. A value that can't be used stops the start with *every* problem in one message.
Imports nothing of ours but errors and units.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated
from urllib.parse import quote, urlsplit

import psutil
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from agentlink.errors import SettingsError
from agentlink.units import format_duration, format_size, parse_duration, parse_share, parse_size

Size = Annotated[int, BeforeValidator(parse_size)]
Share = Annotated[float, BeforeValidator(parse_share)]
Duration = Annotated[float, BeforeValidator(parse_duration)]

ENV_PREFIX = "AGENTLINK_"
BROKER_SCHEMES = ("redis", "rediss", "redis+socket")

# sockaddr_un.sun_path holds 108 bytes on Linux and 104 on macOS, one of them the closing zero.
SOCKET_PATH_MAX_BYTES = 103
DEFAULT_MEMORY_BYTES = 8_000_000_000


def _default_home() -> Path:
    """The XDG state folder (https://specifications.freedesktop.org/basedir-spec): data that outlives a restart."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state") / "agentlink"


def _default_memory_bytes() -> int:
    return min(DEFAULT_MEMORY_BYTES, int(psutil.virtual_memory().total * 0.8))


def _config_file() -> Path:
    return Path(os.environ.get(ENV_PREFIX + "CONFIG") or "agentlink.toml")


class Settings(BaseSettings):
    """Every choice a user can make. Attribute names carry units; the names users write (the aliases) do not."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_prefix_target="all", env_ignore_empty=True, frozen=True, extra="forbid"
    )

    # Where everything is kept: the broker's data, the runs' folders, logs.
    home: Path = Field(default_factory=_default_home)
    # Modules with your own tasks and workflows, imported by every worker.
    imports: Annotated[tuple[str, ...], NoDecode] = ()

    # A Redis or Valkey of your own; without it AgentLink starts an embedded one under `home`.
    broker_url: str | None = None
    # The most memory the embedded broker's data may take. Beyond it a call is refused; nothing stored is dropped.
    broker_memory_bytes: Size = Field(default=1_000_000_000, alias="broker_memory")
    # How long a starting broker may take to answer; a large append-only file takes seconds to load.
    broker_start_timeout_s: Duration = Field(default=30.0, alias="broker_start_timeout")
    # How long a call may wait for the broker before it fails, start to end.
    publish_timeout_s: Duration = Field(default=3.0, alias="publish_timeout")
    # A worker not heard of for this long is dead, and what it was running is queued again.
    lease_s: Duration = Field(default=10.0, alias="lease")

    # Processes that run tasks at the same time.
    concurrency: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=1024)
    # A task gets SoftTimeLimitExceeded at the first and is killed at the second.
    soft_time_limit_s: Duration = Field(default=3600.0, alias="soft_time_limit")
    hard_time_limit_s: Duration = Field(default=3660.0, alias="hard_time_limit")
    # After the first Ctrl-C, how long running tasks get before they are killed and go back to the queue.
    stop_grace_s: Duration = Field(default=60.0, alias="stop_grace")
    # How long results, and runs that have ended, are kept.
    keep_results_s: Duration = Field(default=7 * 86400.0, alias="keep_results")
    # The most runs listed; older ones are forgotten first.
    keep_runs: int = Field(default=10_000, ge=1)

    # The guard: on or off, the limit for everything a worker runs, and the shares of it that matter.
    guard: bool = True
    memory_bytes: Size = Field(default_factory=_default_memory_bytes, alias="memory")
    memory_soft_fraction: Share = Field(default=0.85, alias="memory_soft")
    memory_resume_fraction: Share = Field(default=0.75, alias="memory_resume")
    # Memory the machine must have left, whoever uses it.
    memory_free_bytes: Size = Field(default=500_000_000, alias="memory_free")
    # Least time paused: with the gap between soft and resume it keeps the guard from flapping.
    guard_rest_s: Duration = Field(default=1.0, alias="guard_rest")
    guard_interval_s: Duration = Field(default=0.1, alias="guard_interval")

    # Flower: on or off, and its port on 127.0.0.1 (0: any free one).
    flower: bool = True
    flower_port: int = Field(default=5555, ge=0, le=65535)
    log_level: str = "INFO"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, _config_file())

    @field_validator("home", mode="after")
    @classmethod
    def _home_is_absolute(cls, home: Path) -> Path:
        return Path(os.path.abspath(home.expanduser()))  # noqa: PTH100 - resolve() would follow a user's symlink

    @field_validator("imports", mode="before")
    @classmethod
    def _imports_from_text(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("broker_url", mode="after")
    @classmethod
    def _broker_url_is_redis(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if urlsplit(url).scheme not in BROKER_SCHEMES:
            raise ValueError(f"want a URL that starts with {', '.join(s + '://' for s in BROKER_SCHEMES)}, got {url!r}")
        return url

    @field_validator("log_level", mode="after")
    @classmethod
    def _log_level_is_known(cls, level: str) -> str:
        known = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
        if level.upper() not in known:
            raise ValueError(f"want one of {', '.join(known)}, got {level!r}")
        return level.upper()

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Settings:
        problems = list(self._contradictions())
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _contradictions(self) -> Iterator[str]:
        if not self.memory_resume_fraction < self.memory_soft_fraction:
            yield (
                f"memory_resume ({self.memory_resume_fraction:.0%}) must be below "
                f"memory_soft ({self.memory_soft_fraction:.0%})"
            )
        if not 0 < self.soft_time_limit_s < self.hard_time_limit_s:
            yield (
                f"soft_time_limit ({format_duration(self.soft_time_limit_s)}) must be above 0 and below "
                f"hard_time_limit ({format_duration(self.hard_time_limit_s)})"
            )
        if self.keep_results_s < self.hard_time_limit_s:
            yield (
                f"keep_results ({format_duration(self.keep_results_s)}) must be at least hard_time_limit "
                f"({format_duration(self.hard_time_limit_s)}), or results vanish while their run goes on"
            )
        if self.memory_bytes < 100_000_000:
            yield f"memory ({format_size(self.memory_bytes)}) must be at least 100 MB: a worker alone needs that"
        if not 1 <= self.lease_s <= 3600:
            yield f"lease ({format_duration(self.lease_s)}) must be between 1 s and 1 h"
        if not 0.5 <= self.publish_timeout_s <= 60:
            yield f"publish_timeout ({format_duration(self.publish_timeout_s)}) must be between 500 ms and 1 m"
        if not 0.01 <= self.guard_interval_s <= 1:
            yield f"guard_interval ({format_duration(self.guard_interval_s)}) must be between 10 ms and 1 s"
        if self.broker_url is None and len(os.fsencode(self.socket_path)) > SOCKET_PATH_MAX_BYTES:
            yield (
                f"home is too long: the broker's socket {self.socket_path} takes {len(os.fsencode(self.socket_path))} "
                f"bytes and a Unix socket's path at most {SOCKET_PATH_MAX_BYTES}; set a shorter AGENTLINK_HOME"
            )

    @property
    def embedded(self) -> bool:
        """Whether AgentLink runs the broker itself."""
        return self.broker_url is None

    @property
    def broker_folder(self) -> Path:
        """Where the embedded broker keeps its data, log, lock and socket."""
        return self.home / "broker"

    @property
    def socket_path(self) -> Path:
        """The embedded broker's Unix socket."""
        return self.broker_folder / "socket"

    @property
    def runs_folder(self) -> Path:
        """Where each run keeps its files, one folder a run."""
        return self.home / "runs"

    @property
    def url(self) -> str:
        """The broker's address, as Celery takes it."""
        return self.broker_url or f"redis+socket://{quote(str(self.socket_path))}?virtual_host=0"

    @property
    def result_url(self) -> str:
        """The result store's address: the same server, written as Celery's Redis backend wants it."""
        return self.url.removeprefix("redis+") if self.url.startswith("redis+socket") else self.url


@cache
def load() -> Settings:
    """The settings of this process, read once.

    Raises:
        SettingsError: with every problem found.
    """
    unknown = _unknown_variables()
    try:
        settings = Settings()
    except tomllib.TOMLDecodeError as error:
        raise SettingsError([f"{_config_file()}: not valid TOML: {error}"]) from None
    except OSError as error:
        raise SettingsError([f"{_config_file()}: can't be read: {error.strerror}"]) from None
    except ValidationError as error:
        raise SettingsError(unknown + _describe(error)) from None
    if unknown:
        raise SettingsError(unknown)
    return settings


def _unknown_variables() -> list[str]:
    """A misspelt variable would otherwise be ignored in silence."""
    known = {f"{ENV_PREFIX}{name}".upper() for name in [*_known_names(), "config"]}
    return [
        f"{variable}: is not a setting{_closest(variable, known)}"
        for variable in sorted(os.environ)
        if variable.upper().startswith(ENV_PREFIX) and variable.upper() not in known
    ]


def _closest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else f"; known are {', '.join(sorted(known))}"


def _describe(error: ValidationError) -> list[str]:
    """One line a problem: where the value comes from, and what would be right."""
    problems: list[str] = []
    for detail in error.errors(include_url=False):
        message = detail["msg"].removeprefix("Value error, ")
        if not detail["loc"]:  # a relation between fields: its text names them
            problems += message.splitlines()
            continue
        name = str(detail["loc"][0])
        if detail["type"] == "extra_forbidden":
            message = f"is not a setting{_closest(name, _known_names())}"
        elif not message.startswith("want"):
            message = f"{message[0].lower()}{message[1:]}, got {detail['input']!r}"
        problems.append(f"{_source_of(name)}: {message}")
    return problems


def _known_names() -> list[str]:
    return [field.alias or name for name, field in Settings.model_fields.items()]


def _source_of(name: str) -> str:
    for variable in os.environ:
        if variable.upper() == f"{ENV_PREFIX}{name}".upper():
            return variable
    return f"{name} in {_config_file()}"
