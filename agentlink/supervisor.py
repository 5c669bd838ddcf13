"""`agentlink up`: keep the broker, a worker and Flower running until asked to stop.

The worker and Flower are children that end with this process, however it ends; the broker outlives it. Ctrl-C is for
this process alone: the first one drains (running tasks end, nothing new starts), the second stops.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from agentlink.broker import server
from agentlink.broker.errors import BrokerStartError
from agentlink.errors import AgentLinkError
from agentlink.processes import die_with_parent
from agentlink.settings import Settings

logger = logging.getLogger(__name__)

POLL_S = 0.2
BROKER_CHECK_S = 1.0
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.5, 30.0
# A child that ran this long before it died is restarted as if it had never failed.
SETTLED_S = 60.0
# Between asking a child to stop at once and killing it.
KILL_AFTER_S = 10.0
WORKER_NAME = "cpu"


class AlreadyUp(AgentLinkError):
    """Another `agentlink up` runs on the same home."""

    def __init__(self, pid: str, home: str) -> None:
        super().__init__(pid, home)
        self.pid, self.home = pid, home

    def __str__(self) -> str:
        return f"AgentLink is already up on {self.home} (pid {self.pid}); `agentlink down` stops it"


@dataclass(kw_only=True)
class Child:
    """A process to keep running."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    failures: int = 0
    restart_at: float = 0.0

    def start(self) -> None:
        """Start it in a session of its own: Ctrl-C in a terminal must reach the supervisor only."""
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=partial(die_with_parent, os.getpid(), signal.SIGTERM),
        )
        self.started_at = time.monotonic()
        logger.info("%s started, pid %s", self.name, self.process.pid)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def send(self, signum: int) -> None:
        """Signal it, if it runs."""
        if self.alive and self.process:
            self.process.send_signal(signum)

    def look_after(self, now: float) -> None:
        """Restart it when it has died: at once the first time, then with growing pauses."""
        if self.alive:
            return
        if self.process is not None:
            self.failures = 0 if now - self.started_at > SETTLED_S else self.failures + 1
            pause_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** (self.failures - 1)) if self.failures else 0.0
            self.restart_at = now + pause_s
            logger.warning(
                "%s ended with status %s; restarting it in %.1f s", self.name, self.process.returncode, pause_s
            )
            self.process = None
        if now >= self.restart_at:
            self.start()


@dataclass
class Supervisor:
    """What `agentlink up` runs in the foreground."""

    settings: Settings
    on_ready: Callable[[dict[str, Any]], None]
    stops_asked: int = 0
    children: list[Child] = field(default_factory=list)
    broker_checked_at: float = 0.0
    broker_failures: int = 0

    def run(self) -> None:
        """Bring everything up, keep it up, and return when stopped.

        Raises:
            AlreadyUp: another one runs on the same home.
            BrokerStartError: the broker does not start.
        """
        lock_fd = take_lock(self.settings)
        try:
            if self.settings.embedded:
                server.ensure_running(self.settings)
            self._start_children()
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, self._stop_asked)
            self._supervise()
            self._stop_children()
        finally:
            _state_path(self.settings).unlink(missing_ok=True)
            os.close(lock_fd)

    def _start_children(self) -> None:
        celery = [sys.executable, "-m", "celery", "--quiet", "-A", "tasks"]
        worker = ["worker", "--hostname", f"{WORKER_NAME}@%h", "--queues", "cpu", "--pool", "prefork"]
        # Nothing to agree upon with other workers: leaving this out saves a second at the start.
        worker += ["--without-mingle", "--without-gossip", "--loglevel", self.settings.log_level]
        self.children = [Child(name="worker", command=celery + worker)]
        state: dict[str, Any] = {"pid": os.getpid(), "home": str(self.settings.home), "flower": None}
        if self.settings.flower:
            port = free_port(self.settings.flower_port)
            flower = ["flower", "--address=127.0.0.1", f"--port={port}", "--logging=error"]
            self.children.append(Child(name="flower", command=celery + flower))
            state["flower"] = f"http://127.0.0.1:{port}"
        for child in self.children:
            child.start()
        _write_state(self.settings, state)
        self.on_ready(state)

    def _supervise(self) -> None:
        while not self.stops_asked:
            now = time.monotonic()
            self._look_after_broker(now)
            for child in self.children:
                child.look_after(now)
            time.sleep(POLL_S)

    def _look_after_broker(self, now: float) -> None:
        if not self.settings.embedded or now < self.broker_checked_at:
            return
        self.broker_checked_at = now + BROKER_CHECK_S
        try:
            if server.ensure_running(self.settings, timeout_s=BROKER_CHECK_S):
                logger.warning("the broker had ended; it is running again with all its data")
            self.broker_failures = 0
        except BrokerStartError as error:
            self.broker_failures += 1
            pause_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**self.broker_failures)
            self.broker_checked_at = now + pause_s
            logger.warning("%s; trying again in %.1f s", error, pause_s)

    def _stop_asked(self, signum: int, frame: FrameType | None) -> None:
        self.stops_asked += 1

    def _stop_children(self) -> None:
        """Drain for at most the grace, or until asked again; then stop at once; then kill."""
        logger.info(
            "draining: running tasks get %.0f s, nothing new starts; Ctrl-C again stops them and they go back to "
            "their queue",
            self.settings.stop_grace_s,
        )
        asked = self.stops_asked
        self._signal_and_wait(signal.SIGTERM, self.settings.stop_grace_s, lambda: self.stops_asked > asked)
        self._signal_and_wait(signal.SIGQUIT, KILL_AFTER_S, lambda: False)
        self._signal_and_wait(signal.SIGKILL, KILL_AFTER_S, lambda: False)

    def _signal_and_wait(self, signum: int, timeout_s: float, hurry: Callable[[], bool]) -> None:
        for child in self.children:
            child.send(signum)
        deadline = time.monotonic() + timeout_s
        while any(child.alive for child in self.children) and time.monotonic() < deadline and not hurry():
            time.sleep(POLL_S / 4)


def read_state(settings: Settings) -> dict[str, Any] | None:
    """What a running `agentlink up` on this home says of itself: pid, home, Flower's address. None: there is none."""
    if _lock_is_free(settings):
        return None
    try:
        state: dict[str, Any] = json.loads(_state_path(settings).read_text())
    except (OSError, ValueError):
        return None  # it has the lock and is about to write
    return state


def stop_supervisor(settings: Settings) -> bool:
    """Drain and stop the `agentlink up` of this home, and wait for its end; return whether there was one.

    Raises:
        AgentLinkError: it is still there after its grace.
    """
    if _lock_is_free(settings):
        return False
    pid = int(_lock_path(settings).read_text())
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + settings.stop_grace_s + 3 * KILL_AFTER_S
    while not _lock_is_free(settings):
        if time.monotonic() > deadline:
            raise AgentLinkError(f"`agentlink up` (pid {pid}) did not stop in time")
        time.sleep(POLL_S / 4)
    return True


def take_lock(settings: Settings) -> int:
    """The lock that makes one `agentlink up` a home, as an open file that holds it.

    Raises:
        AlreadyUp: somebody else has it.
    """
    server.make_folder(settings.home)
    fd = os.open(_lock_path(settings), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise AlreadyUp(_lock_path(settings).read_text().strip(), str(settings.home)) from None
    os.truncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd


def _lock_is_free(settings: Settings) -> bool:
    try:
        with _lock_path(settings).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    return True


def _lock_path(settings: Settings) -> Path:
    return settings.home / "up.lock"


def _state_path(settings: Settings) -> Path:
    return settings.home / "up.json"


def _write_state(settings: Settings, state: dict[str, Any]) -> None:
    written = _state_path(settings).with_suffix(".new")
    written.write_text(json.dumps(state))
    written.replace(_state_path(settings))


def free_port(wanted: int) -> int:
    """The wanted port on the loopback, or any free one if that is taken: a second AgentLink must come up too.

    Raises:
        AgentLinkError: there is none.
    """
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                logger.warning("port %s is taken, Flower gets another", port)
                continue
            chosen: int = probe.getsockname()[1]
            return chosen
    raise AgentLinkError("no TCP port is free on 127.0.0.1 for Flower; AGENTLINK_FLOWER=off goes without")
