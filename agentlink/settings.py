"""Every choice a user can make, with its reason and its default, and what follows from it.

What a value may be is in `settings_checks`, where values come from in `settings_sources`.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import psutil
from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from agentlink import cgroups
from agentlink.address import shown_address
from agentlink.errors import SettingsError
from agentlink.home import default_home
from agentlink.settings_checks import (
    Address,
    BrokerUrl,
    Count,
    EventLevel,
    Home,
    LogFormat,
    LogLevel,
    MasterName,
    Modules,
    Name,
    Resources,
    Share,
    Storage,
    contradictions,
    duration,
    share,
    size,
)
from agentlink.settings_sources import ENV_PREFIX, file_values, problems_of, unknown_variables

DEFAULT_MEMORY_BYTES = 8_000_000_000
DEFAULT_MEMORY_FREE_BYTES = 500_000_000


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
    home: Home = Field(default_factory=default_home, validate_default=True)
    # Modules with your own tasks and workflows, imported by every worker.
    imports: Modules = ()

    # A Redis or Valkey of your own; without it AgentLink starts an embedded one under `home`.
    broker_url: BrokerUrl = Field(default=None, repr=False)  # it may hold a password
    # With an address of Sentinels (sentinel://): the name of the master they watch.
    broker_master: MasterName = None
    # The most memory the embedded broker's data may take. Beyond it a call is refused; nothing stored is dropped.
    # (An empty one takes a few megabytes.)
    broker_memory_bytes: Annotated[int, size("16MB")] = Field(default=1_000_000_000, alias="broker_memory")
    # How long a starting broker may take to answer; a large append-only file takes seconds to load.
    broker_start_timeout_s: Annotated[float, duration("100ms", "1h")] = Field(
        default=30.0, alias="broker_start_timeout"
    )
    # How long a call may wait for the broker before it fails, start to end.
    publish_timeout_s: Annotated[float, duration("500ms", "1m")] = Field(default=3.0, alias="publish_timeout")
    # A worker not heard of for this long is dead, and what it was running is queued again.
    lease_s: Annotated[float, duration("1s", "1h")] = Field(default=10.0, alias="lease")

    # Processes that run tasks at the same time.
    concurrency: Count = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=1024)
    # A task gets SoftTimeLimitExceeded at the first and is killed at the second.
    soft_time_limit_s: Annotated[float, duration("100ms", "365d")] = Field(default=3600.0, alias="soft_time_limit")
    hard_time_limit_s: Annotated[float, duration("100ms", "365d")] = Field(default=3660.0, alias="hard_time_limit")
    # What one call may lead to, all that its steps start included: steps in all, steps that have not ended, and how
    # deep steps may start steps.
    max_steps: Count = Field(default=100_000, ge=1, le=100_000_000)
    max_steps_live: Count = Field(default=20_000, ge=1, le=100_000_000)
    max_depth: Count = Field(default=16, ge=1, le=1000)
    # The agent in whose name this process calls; a call may name another: `apply_async(..., agent="anna")`.
    agent: Name = None
    # What an agent's calls may lead to together: steps that have not ended, and steps in all since it was last idle for
    # twice as long as results are kept.
    max_agent_steps: Count = Field(default=10_000_000, ge=1, le=1_000_000_000)
    max_agent_steps_live: Count = Field(default=50_000, ge=1, le=100_000_000)
    # After the first Ctrl-C, how long running tasks get before they are killed and go back to the queue.
    stop_grace_s: Annotated[float, duration("0s", "1d")] = Field(default=60.0, alias="stop_grace")
    # After its run was cancelled, how long a running task may take to end before it is killed.
    cancel_grace_s: Annotated[float, duration("0s", "1h")] = Field(default=5.0, alias="cancel_grace")
    # How long results, and runs that have ended, are kept.
    keep_results_s: Annotated[float, duration("1s", "3650d")] = Field(default=7 * 86400.0, alias="keep_results")
    # A larger result or argument (as JSON) is kept in a file, and the broker keeps a reference of some hundred bytes.
    results_inline_bytes: Annotated[int, size("1KB", "100MB")] = Field(default=64_000, alias="results_inline")
    # Where those files are: a folder, or any address that fsspec knows (s3://bucket/folder); by default below `home`.
    storage: Storage = Field(default=None, repr=False)  # it may hold a password
    # The most that a run's steps may have put out and logged, in the broker: of more, the oldest goes.
    stream_bytes: Annotated[int, size("1MB")] = Field(default=16_000_000, alias="stream")
    # The most runs listed; older ones are forgotten first.
    keep_runs: Count = Field(default=100_000, ge=1, le=10_000_000)

    # The guard: on or off, and off for these resources only (of RESOURCES). With a dry run it only says what it would
    # do.
    guard: bool = True
    guard_off: Resources = ()
    guard_dry_run: bool = False
    # The limit for everything a worker runs; a container's own limit counts if it is less. (A worker alone takes nearly
    # 100 MB.)
    memory_bytes: Annotated[int, size("100MB")] = Field(default_factory=_default_memory_bytes, alias="memory")
    # Memory the machine must have left, whoever uses it.
    memory_free_bytes: Annotated[int, size("0MB")] = Field(
        default_factory=_default_memory_free_bytes, alias="memory_free"
    )
    # Share of the machine's CPU time, or of a container's, that tasks may take: mean over 10 s.
    cpu_fraction: Annotated[float, share("1%")] = Field(default=0.6, alias="cpu")
    # What the disks of the home and of temporary files must have left: the smaller of the two.
    disk_free_bytes: Annotated[int, size("0MB")] = Field(default=2_000_000_000, alias="disk_free")
    disk_free_fraction: Annotated[float, share("0%", "99%")] = Field(default=0.1, alias="disk_free_share")
    # The most that everything under `home` may take: near it the oldest large results go before their time.
    disk_quota_bytes: Annotated[int, size("10MB")] = Field(default=20_000_000_000, alias="disk_quota")
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
    guard_rest_s: Annotated[float, duration("0s", "1h")] = Field(default=1.0, alias="guard_rest")
    # A pause that lasts so long is an error in the log: something is stuck, or the limits are too low.
    guard_alarm_s: Annotated[float, duration("1s", "365d")] = Field(default=900.0, alias="guard_alarm")
    guard_interval_s: Annotated[float, duration("10ms", "1s")] = Field(default=0.1, alias="guard_interval")

    # What is told of as it happens: nothing (off), what somebody may have to see to (basic), what becomes of runs
    # (standard), each step's start and end too (full); `agentlink events level` changes it while all runs. Of more
    # events than this a second, one in a hundred is told, and how many there were; failures always.
    events: EventLevel = "full"
    events_rate: Count = Field(default=200, ge=1, le=1_000_000)

    # Flower: on or off, and its port on 127.0.0.1 (0: any free one).
    flower: bool = True
    flower_port: Count = Field(default=5555, ge=0, le=65535)
    # A port of a worker's own for Prometheus (0: any free one); without it metrics are at Flower's /metrics alone.
    # Nobody is asked for a password there: think twice before it is open to others than this machine.
    metrics_port: Count | None = Field(default=None, ge=0, le=65535)
    metrics_address: Address = "127.0.0.1"
    log_level: LogLevel = "INFO"
    # Lines of the log for people, or one JSON object each, for programs that gather logs.
    log_format: LogFormat = "text"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, InitSettingsSource(settings_cls, file_values())

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Settings:
        problems = list(contradictions(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self

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
    known = [field.alias or name for name, field in Settings.model_fields.items()]
    unknown = unknown_variables(known)
    try:
        settings = Settings()
    except SettingsError as error:
        raise SettingsError(unknown + error.problems) from None
    except ValidationError as error:
        raise SettingsError(unknown + problems_of(error, known)) from None
    if unknown:
        raise SettingsError(unknown)
    return settings
