"""`agentlink doctor`: everything a start needs, checked one by one, each said in words."""

from __future__ import annotations

import contextlib
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis

from agentlink import supervisor, up
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
    """All checks, in the order of a start. What they start they stop, what they make they remove."""
    yield _python()
    try:
        settings = load()
    except AgentLinkError as error:
        yield Check(passed=False, says=str(error))
        return
    yield Check(passed=True, says=f"settings: home {settings.home}, broker {settings.shown_url}")
    checks: list[Callable[[Settings], Check]] = [_home, _disk, _memory, _open_files]
    checks += [_server_program, _embedded_broker] if settings.embedded else [_own_broker]
    for check in [*checks, _modules, _flower]:
        try:
            yield check(settings)
        except (AgentLinkError, OSError, subprocess.SubprocessError) as error:
            yield Check(passed=False, says=str(error))


def _python() -> Check:
    return Check(
        passed=sys.version_info >= (3, 11),
        says=f"Python {platform.python_version()} at {sys.executable}; 3.11 is needed",
    )


def _home(settings: Settings) -> Check:
    made = [folder for folder in (settings.home, *settings.home.parents) if not folder.exists()]
    try:
        server.make_folder(settings.home)
        tempfile.TemporaryFile(dir=settings.home).close()
        open_to_others = settings.home.stat().st_mode & 0o077
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # not made, or in use by now
                folder.rmdir()
    advice = f"; so can others read it, `chmod 700 {settings.home}` ends that" if open_to_others else ", by you alone"
    return Check(passed=True, says=f"{settings.home} can be written{advice}")


def _disk(settings: Settings) -> Check:
    existing = next(folder for folder in (settings.home, *settings.home.parents) if folder.exists())
    free_bytes = shutil.disk_usage(existing).free
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
    answer = subprocess.run(
        [str(server.program()), "--version"], capture_output=True, text=True, timeout=10, check=False
    )
    return Check(passed=answer.returncode == 0, says=f"broker: {(answer.stdout or answer.stderr).split(' sha=')[0]}")


def _embedded_broker(settings: Settings) -> Check:
    if server.is_running(settings):
        return Check(passed=True, says="the broker is running and answers")
    with tempfile.TemporaryDirectory(prefix="agentlink-") as folder:
        has_data = settings.broker_folder.exists()
        home = settings if has_data else settings.model_copy(update={"home": Path(folder)})
        if server.ensure_running(home):
            server.stop(home)
    return Check(passed=True, says=f"the broker starts{' with its data' if has_data else ''} and stops")


def _own_broker(settings: Settings) -> Check:
    from tasks import app

    try:
        info = app.backend.client.info("server")
    except redis.RedisError as error:
        return Check(passed=False, says=f"the broker at {settings.shown_url} does not answer: {error}")
    version = tuple(int(part) for part in info["redis_version"].split(".")[:2])
    says = f"the broker at {settings.shown_url} is version {info['redis_version']}"
    return Check(passed=version >= MIN_REDIS, says=says)


def _modules(settings: Settings) -> Check:
    from agentlink.modules import import_all

    import_all(settings)
    names = ["tasks", "workflows", *settings.imports]
    return Check(passed=True, says=f"{', '.join(names[:-1])} and {names[-1]} can be imported")


def _flower(settings: Settings) -> Check:
    if not settings.flower:
        return Check(passed=True, says="Flower is off")
    wanted = settings.flower_port
    port = supervisor.free_port(wanted)
    if not wanted:
        return Check(passed=True, says="Flower takes any free port")
    if state := up.read_state(settings):
        return Check(passed=True, says=f"Flower: {state['flower']}")
    says = f"Flower's port {port} is free" if port == wanted else f"port {wanted} is taken, Flower takes another"
    return Check(passed=True, says=says)
