"""One validated, frozen settings object from `AGENTLINK_*` variables and `agentlink.toml`.

The environment wins over the file, the file over the defaults. The file is `agentlink.toml` in the current folder, or
the one that `AGENTLINK_CONFIG` names. A value that can't be used stops the start with *every* problem in one message.
Imports nothing of ours but what settings are made of: addresses, the home, control groups, units, errors.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import psutil
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from agentlink import cgroups
from agentlink.address import SOCKET_PATH_MAX_BYTES, checked_address, shown_address
from agentlink.errors import SettingsError
from agentlink.home import checked_home, default_home
from agentlink.units import checked_name, format_duration, parse_duration, parse_share, parse_size, shown

ENV_PREFIX = "AGENTLINK_"
DEFAULT_MEMORY_BYTES = 8_000_000_000
DEFAULT_MEMORY_FREE_BYTES = 500_000_000
#: What the guard watches, each of which can be switched off.
RESOURCES = ("memory", "memory_free", "cpu", "disk_free", "disk_quota", "broker_memory", "processes")


def _size(least: str, most: str = "1000TB") -> BeforeValidator:
    return BeforeValidator(partial(_between, parse_size, least, most))


def _duration(least: str, most: str) -> BeforeValidator:
    return BeforeValidator(partial(_between, parse_duration, least, most))


def _share(least: str, most: str = "100%") -> BeforeValidator:
    return BeforeValidator(partial(_between, parse_share, least, most))


def _between(parse: Callable[[object], float], least: str, most: str, value: object) -> float:
    amount = parse(value)
    if not parse(least) <= amount <= parse(most):
        raise ValueError(f"want {least} to {most}, got {shown(value)}")
    return amount


def _no_truth_value(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"want a number, got {value}")  # noqa: TRY004 - Python would take it for 0 or 1
    return value


Count = Annotated[int, BeforeValidator(_no_truth_value)]
Share = Annotated[float, BeforeValidator(parse_share)]


def _default_memory_bytes() -> int:
    return min(DEFAULT_MEMORY_BYTES, int(_memory_there_is_bytes() * 0.8))


def _default_memory_free_bytes() -> int:
    return min(DEFAULT_MEMORY_FREE_BYTES, int(_memory_there_is_bytes() * 0.1))


def _memory_there_is_bytes() -> int:
    """What the machine has, or the container if that is less."""
    limit = cgroups.Cgroups().memory_limit()
    total_bytes: int = psutil.virtual_memory().total
    return min(total_bytes, limit.amount) if limit else total_bytes


class Settings(BaseSettings):
    """Every choice a user can make. Attribute names carry units; the names users write (the aliases) do not."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_prefix_target="all", env_ignore_empty=True, frozen=True, extra="forbid"
    )

    # Where everything is kept: the broker's data, the runs' folders, logs.
    home: Path = Field(default_factory=default_home, validate_default=True)
    # Modules with your own tasks and workflows, imported by every worker.
    imports: Annotated[tuple[str, ...], NoDecode] = ()

    # A Redis or Valkey of your own; without it AgentLink starts an embedded one under `home`.
    broker_url: str | None = Field(default=None, repr=False)  # it may hold a password
    # With an address of Sentinels (sentinel://): the name of the master they watch.
    broker_master: str | None = None
    # The most memory the embedded broker's data may take. Beyond it a call is refused; nothing stored is dropped.
    # (An empty one takes a few megabytes.)
    broker_memory_bytes: Annotated[int, _size("16MB")] = Field(default=1_000_000_000, alias="broker_memory")
    # How long a starting broker may take to answer; a large append-only file takes seconds to load.
    broker_start_timeout_s: Annotated[float, _duration("100ms", "1h")] = Field(
        default=30.0, alias="broker_start_timeout"
    )
    # How long a call may wait for the broker before it fails, start to end.
    publish_timeout_s: Annotated[float, _duration("500ms", "1m")] = Field(default=3.0, alias="publish_timeout")
    # A worker not heard of for this long is dead, and what it was running is queued again.
    lease_s: Annotated[float, _duration("1s", "1h")] = Field(default=10.0, alias="lease")

    # Processes that run tasks at the same time.
    concurrency: Count = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=1024)
    # A task gets SoftTimeLimitExceeded at the first and is killed at the second.
    soft_time_limit_s: Annotated[float, _duration("100ms", "365d")] = Field(default=3600.0, alias="soft_time_limit")
    hard_time_limit_s: Annotated[float, _duration("100ms", "365d")] = Field(default=3660.0, alias="hard_time_limit")
    # What one call may lead to, all that its steps start included: steps in all, steps that have not ended, and how
    # deep steps may start steps.
    max_steps: Count = Field(default=100_000, ge=1, le=100_000_000)
    max_steps_live: Count = Field(default=20_000, ge=1, le=100_000_000)
    max_depth: Count = Field(default=16, ge=1, le=1000)
    # The agent in whose name this process calls; a call may name another: `apply_async(..., agent="anna")`.
    agent: Annotated[str | None, BeforeValidator(checked_name)] = None
    # What an agent's calls may lead to together: steps that have not ended, and steps in all since it was last idle for
    # twice as long as results are kept.
    max_agent_steps: Count = Field(default=10_000_000, ge=1, le=1_000_000_000)
    max_agent_steps_live: Count = Field(default=50_000, ge=1, le=100_000_000)
    # After the first Ctrl-C, how long running tasks get before they are killed and go back to the queue.
    stop_grace_s: Annotated[float, _duration("0s", "1d")] = Field(default=60.0, alias="stop_grace")
    # After its run was cancelled, how long a running task may take to end before it is killed.
    cancel_grace_s: Annotated[float, _duration("0s", "1h")] = Field(default=5.0, alias="cancel_grace")
    # How long results, and runs that have ended, are kept.
    keep_results_s: Annotated[float, _duration("1s", "3650d")] = Field(default=7 * 86400.0, alias="keep_results")
    # A larger result or argument (as JSON) is kept in a file, and the broker keeps a reference of some hundred bytes.
    results_inline_bytes: Annotated[int, _size("1KB", "100MB")] = Field(default=64_000, alias="results_inline")
    # Where those files are: a folder, or any address that fsspec knows (s3://bucket/folder); by default below `home`.
    storage: str | None = Field(default=None, repr=False)  # it may hold a password
    # The most that a run's steps may have put out and logged, in the broker: of more, the oldest goes.
    stream_bytes: Annotated[int, _size("1MB")] = Field(default=16_000_000, alias="stream")
    # The most runs listed; older ones are forgotten first.
    keep_runs: Count = Field(default=100_000, ge=1, le=10_000_000)

    # The guard: on or off, and off for these resources only (of RESOURCES). With a dry run it only says what it would
    # do.
    guard: bool = True
    guard_off: Annotated[tuple[str, ...], NoDecode] = ()
    guard_dry_run: bool = False
    # The limit for everything a worker runs; a container's own limit counts if it is less. (A worker alone takes nearly
    # 100 MB.)
    memory_bytes: Annotated[int, _size("100MB")] = Field(default_factory=_default_memory_bytes, alias="memory")
    # Memory the machine must have left, whoever uses it.
    memory_free_bytes: Annotated[int, _size("0MB")] = Field(
        default_factory=_default_memory_free_bytes, alias="memory_free"
    )
    # Share of the machine's CPU time, or of a container's, that tasks may take: mean over 10 s.
    cpu_fraction: Annotated[float, _share("1%")] = Field(default=0.6, alias="cpu")
    # What the disks of the home and of temporary files must have left: the smaller of the two.
    disk_free_bytes: Annotated[int, _size("0MB")] = Field(default=2_000_000_000, alias="disk_free")
    disk_free_fraction: Annotated[float, _share("0%", "99%")] = Field(default=0.1, alias="disk_free_share")
    # The most that everything under `home` may take: near it the oldest large results go before their time.
    disk_quota_bytes: Annotated[int, _size("10MB")] = Field(default=20_000_000_000, alias="disk_quota")
    # The most processes a worker may run.
    processes: Count = Field(default=1000, ge=10, le=1_000_000)
    # Shares of these limits. Soft: nothing more starts (of the CPU: fewer at a time). Resume: all is well again. Hard:
    # running work is ended (of the CPU: slowed down).
    memory_soft_fraction: Share = Field(default=0.90, alias="memory_soft")
    memory_resume_fraction: Share = Field(default=0.80, alias="memory_resume")
    memory_hard_fraction: Share = Field(default=0.95, alias="memory_hard")
    cpu_soft_fraction: Share = Field(default=0.95, alias="cpu_soft")
    cpu_resume_fraction: Share = Field(default=0.85, alias="cpu_resume")
    cpu_hard_fraction: Share = Field(default=1.0, alias="cpu_hard")
    disk_quota_soft_fraction: Share = Field(default=1.0, alias="disk_quota_soft")
    disk_quota_resume_fraction: Share = Field(default=0.95, alias="disk_quota_resume")
    broker_memory_soft_fraction: Share = Field(default=0.90, alias="broker_memory_soft")
    broker_memory_resume_fraction: Share = Field(default=0.80, alias="broker_memory_resume")
    processes_soft_fraction: Share = Field(default=0.80, alias="processes_soft")
    processes_resume_fraction: Share = Field(default=0.70, alias="processes_resume")
    processes_hard_fraction: Share = Field(default=0.95, alias="processes_hard")
    # How often in a row a mark must be passed to count, up and down, and the least time paused: with the gap between
    # soft and resume they keep the guard from flapping.
    guard_readings_on: Count = Field(default=1, ge=1, le=100)
    guard_readings_off: Count = Field(default=3, ge=1, le=100)
    guard_rest_s: Annotated[float, _duration("0s", "1h")] = Field(default=1.0, alias="guard_rest")
    # A pause that lasts so long is an error in the log: something is stuck, or the limits are too low.
    guard_alarm_s: Annotated[float, _duration("1s", "365d")] = Field(default=900.0, alias="guard_alarm")
    guard_interval_s: Annotated[float, _duration("10ms", "1s")] = Field(default=0.1, alias="guard_interval")

    # Flower: on or off, and its port on 127.0.0.1 (0: any free one).
    flower: bool = True
    flower_port: Count = Field(default=5555, ge=0, le=65535)
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
        return init_settings, env_settings, InitSettingsSource(settings_cls, _file_values(_config_file()))

    @field_validator("home", mode="after")
    @classmethod
    def _home_is_a_folder(cls, home: Path) -> Path:
        return checked_home(home)

    @field_validator("imports", "guard_off", mode="before")
    @classmethod
    def _names_from_text(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("imports", mode="after")
    @classmethod
    def _imports_are_modules(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not all(part.isidentifier() for part in name.split(".")):
                raise ValueError(f"want modules as Python imports them, like mywork or mywork.tasks, got {shown(name)}")
        return names

    @field_validator("broker_url", mode="before")
    @classmethod
    def _broker_url_is_an_address(cls, url: object) -> str | None:
        if url is not None and not isinstance(url, str):
            raise ValueError("want a text")  # and don't show what was given, it may hold a password
        return None if url is None else checked_address(url)

    @field_validator("broker_master", mode="after")
    @classmethod
    def _broker_master_is_a_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z0-9._-]+", name):
            raise ValueError(f"want a name of letters, digits and . - _ as Sentinel knows it, got {shown(name)}")
        return name

    @field_validator("guard_off", mode="after")
    @classmethod
    def _guard_off_names_resources(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in RESOURCES:
                raise ValueError(f"want some of {', '.join(RESOURCES)}, got {shown(name)}")
        return names

    @field_validator("storage", mode="after")
    @classmethod
    def _storage_is_a_place(cls, location: str | None) -> str | None:
        if location is None or location.startswith("/"):
            return location
        protocol, separator, _ = location.partition("://")
        if not separator:
            raise ValueError("want a folder's absolute path or an address like s3://bucket/folder")
        import fsspec  # takes 60 ms, and few set this

        try:
            fsspec.get_filesystem_class(protocol)
        except (ImportError, ValueError) as error:
            raise ValueError(f"want an address that fsspec knows: {error}") from None
        return location

    @field_validator("log_level", mode="after")
    @classmethod
    def _log_level_is_known(cls, level: str) -> str:
        known = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
        if level.upper() not in known:
            raise ValueError(f"want one of {', '.join(known)}, got {shown(level)}")
        return level.upper()

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Settings:
        problems = list(self._contradictions())
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _contradictions(self) -> Iterator[str]:
        yield from self._marks_out_of_order()
        if not self.soft_time_limit_s < self.hard_time_limit_s:
            yield (
                f"soft_time_limit ({format_duration(self.soft_time_limit_s)}) must be below "
                f"hard_time_limit ({format_duration(self.hard_time_limit_s)})"
            )
        if self.keep_results_s < self.hard_time_limit_s:
            yield (
                f"keep_results ({format_duration(self.keep_results_s)}) must be at least hard_time_limit "
                f"({format_duration(self.hard_time_limit_s)}), or results vanish while their run goes on"
            )
        if self.behind_sentinel and self.broker_master is None:
            yield "broker_url is of Sentinels and needs broker_master, the name of the master they watch"
        if self.broker_master is not None and not self.behind_sentinel:
            yield "broker_master is for a broker_url of Sentinels (sentinel://) only"
        if self.broker_url is None and len(os.fsencode(self.socket_path)) > SOCKET_PATH_MAX_BYTES:
            yield (
                f"home is too long: the broker's socket {shown(str(self.socket_path))} takes "
                f"{len(os.fsencode(self.socket_path))} bytes and a Unix socket's path at most {SOCKET_PATH_MAX_BYTES}; "
                "set a shorter AGENTLINK_HOME"
            )

    def _marks_out_of_order(self) -> Iterator[str]:
        for resource in ("memory", "cpu", "disk_quota", "broker_memory", "processes"):
            names = [f"{resource}_{mark}" for mark in ("resume", "soft", "hard")]
            resume, soft, hard = (getattr(self, f"{name}_fraction", 1.0) for name in names)
            if not 0 < resume < soft:
                yield f"{names[0]} ({resume:.0%}) must be above 0 and below {names[1]} ({soft:.0%})"
            if soft > hard:
                yield f"{names[1]} ({soft:.0%}) must be at most {names[2]} ({hard:.0%})"

    @property
    def embedded(self) -> bool:
        """Whether AgentLink runs the broker itself."""
        return self.broker_url is None

    @property
    def behind_sentinel(self) -> bool:
        """Whether the broker's address is one of Sentinels, who know where it is at the moment."""
        return self.broker_url is not None and self.broker_url.startswith("sentinel://")

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
    def storage_location(self) -> str:
        """Where large results are kept, as fsspec takes it."""
        return self.storage or str(self.home / "results")

    @property
    def url(self) -> str:
        """The broker's address, as Celery takes it."""
        return self.broker_url or f"redis+socket://{quote(str(self.socket_path))}?virtual_host=0"

    @property
    def shown_url(self) -> str:
        """The broker's address without a password, for people."""
        return shown_address(self.url)

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
    except SettingsError as error:
        raise SettingsError(unknown + error.problems) from None
    except ValidationError as error:
        raise SettingsError(unknown + _describe(error)) from None
    if unknown:
        raise SettingsError(unknown)
    return settings


def _config_file() -> Path:
    return Path(os.environ.get(ENV_PREFIX + "CONFIG") or "agentlink.toml")


def _file_values(file: Path) -> dict[str, Any]:
    """What the file sets. Only one that nobody named may be missing."""
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
            message = f"{message[0].lower()}{message[1:]}, got {shown(detail['input'])}"
        problems.append(f"{_source_of(name)}: {message}")
    return problems


def _known_names() -> list[str]:
    return [field.alias or name for name, field in Settings.model_fields.items()]


def _source_of(name: str) -> str:
    for variable in os.environ:
        if variable.upper() == f"{ENV_PREFIX}{name}".upper():
            return variable
    return f"{name} in {_config_file()}" if _config_file().is_file() else f"{ENV_PREFIX}{name.upper()}"
