"""`agentlink up`: keep the broker, a worker and Flower running until asked to stop.

The worker and Flower are children that end with this process, however it ends; the broker outlives it. Ctrl-C is for
this process alone: the first one drains (running tasks end, nothing new starts), the second stops.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

from agentlink import heartbeats, up
from agentlink.broker import server
from agentlink.broker.errors import BrokerStartError
from agentlink.errors import AgentLinkError
from agentlink.processes import die_with_parent
from agentlink.settings import Settings
from agentlink.systemd import Notifier
from agentlink.units import format_duration

logger = logging.getLogger(__name__)

POLL_S = 0.1
BROKER_CHECK_S = 1.0
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.5, 30.0
# A child that ran this long before it died is restarted as if it had never failed.
SETTLED_S = 60.0
WORKER_NAME = "cpu"
# Celery says at each start, on nine lines, that it should not run as root.
NO_ROOT_WARNING = "ignore:You're running the worker with superuser privileges"


class WorkerFailed(AgentLinkError):
    """The worker ended by itself before it could take a single task: trying again would not help."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status

    def __str__(self) -> str:
        return f"the worker could not start (exit status {self.status})"


@dataclass(kw_only=True)
class Child:
    """A process to keep running."""

    name: str
    #: Asked at each start, since what it needs (a port) may have been taken meanwhile.
    command: Callable[[], list[str]]
    #: What it gets when this process ends without stopping it.
    orphaned_signal: signal.Signals
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    failures: int = 0
    restart_at: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def look_after(self, now: float) -> None:
        """Start it when it does not run: a child that keeps dying after ever longer pauses."""
        if self.alive:
            return
        if self.process is not None:
            self._put_off(now, f"ended with status {self.process.returncode}")
            self.process = None
        if now < self.restart_at:
            return
        try:
            self._start(now)
        except OSError as error:
            self._put_off(now, f"can't be started: {error.strerror}")

    def send(self, signum: int) -> None:
        """Signal it, if it runs."""
        if self.alive and self.process:
            self.process.send_signal(signum)

    def _start(self, now: float) -> None:
        self.process = subprocess.Popen(
            self.command(),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in a terminal must reach the supervisor only
            preexec_fn=partial(die_with_parent, os.getpid(), self.orphaned_signal),
        )
        self.started_at = now
        logger.info("%s started, pid %s", self.name, self.process.pid)

    def _put_off(self, now: float, why: str) -> None:
        self.failures = 1 if now - self.started_at > SETTLED_S else self.failures + 1
        pause_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** (self.failures - 1))
        self.restart_at = now + pause_s
        logger.warning("%s %s; starting it again in %.1f s", self.name, why, pause_s)


class Supervisor:
    """What `agentlink up` runs in the foreground; `on_ready` gets what it says of itself once everything works."""

    def __init__(self, settings: Settings, on_ready: Callable[[dict[str, Any]], None]) -> None:
        self.settings, self.on_ready = settings, on_ready
        self.worker = Child(name="worker", command=self._worker, orphaned_signal=signal.SIGQUIT)
        self.flower = Child(name="Flower", command=self._flower, orphaned_signal=signal.SIGTERM)
        self.children = [self.worker, self.flower] if settings.flower else [self.worker]
        self.flower_port = settings.flower_port
        self.state: dict[str, Any] = {"pid": os.getpid(), "home": str(settings.home)}
        self.state |= {"state": "starting", "flower": None}
        self.said: dict[str, Any] = {}
        self.stops_asked = 0
        self.broker_check_at = 0.0
        self.broker_failures = 0
        self.beat_at = 0.0
        self.worker_watch = heartbeats.Watch(settings.home)
        self.systemd = Notifier.of_this_process()

    def run(self) -> None:
        """Bring everything up, keep it up, and return when stopped.

        Raises:
            AlreadyUp: another one runs on the same home.
            BrokerStartError: the broker does not start.
            WorkerFailed: the worker does not start.
        """
        lock_fd = up.take_lock(self.settings)
        try:
            heartbeats.forget_the_dead(self.settings.home)
            if self.settings.embedded:
                server.ensure_running(self.settings)  # Ctrl-C here ends all: there is nothing to drain yet
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, self._stop_asked)
            try:
                self._supervise()
            finally:
                self._stop_children()
        finally:
            up.release_lock(self.settings, lock_fd)

    def _supervise(self) -> None:
        while not self.stops_asked:
            now = time.monotonic()
            self._look_after_broker(now)
            if self.state["state"] == "starting":
                self._check_start()
            for child in self.children:
                child.look_after(now)
            self._say()
            if now >= self.beat_at:
                self.beat_at = now + heartbeats.BEAT_S
                self.systemd.alive()
                self._end_a_hanging_worker(now)
            time.sleep(POLL_S)

    def _end_a_hanging_worker(self, now: float) -> None:
        """What it was running is long with others, or waits for one: its lease is shorter."""
        process = self.worker.process
        if process is not None and self.worker_watch.hangs(process.pid, now):
            logger.error("the worker's main loop has not turned for %.0f s; it is killed", heartbeats.STALE_S)
            self.worker.send(signal.SIGKILL)

    def _check_start(self) -> None:
        status = self.worker.process.poll() if self.worker.process else None
        if status is not None and status > 0:  # by itself, not by a signal
            raise WorkerFailed(status)
        worker_ready = self.worker.process and up.worker_ready_pid(self.settings) == self.worker.process.pid
        # Flower is no reason to say that nothing works.
        flower_ready = not self.settings.flower or self.flower.failures or _listens(self.flower_port)
        if worker_ready and flower_ready:
            self.state["state"] = "up"
            self._say()
            self.systemd.ready(f"up; Flower: {self.state['flower'] or 'off'}")
            self.on_ready(self.state)

    def _look_after_broker(self, now: float) -> None:
        if not self.settings.embedded or now < self.broker_check_at:
            return
        self.broker_check_at = now + BROKER_CHECK_S
        try:
            if server.ensure_running(self.settings, timeout_s=BROKER_CHECK_S):
                logger.warning("the broker had ended; it is running again with all its data")
            self.broker_failures = 0
        except BrokerStartError as error:
            self.broker_failures += 1
            pause_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**self.broker_failures)
            if server.holder(self.settings) is not None:
                # One that hangs may end any moment, and is started again at once then.
                pause_s = BROKER_CHECK_S
            self.broker_check_at = time.monotonic() + pause_s
            if self.broker_failures == 1 or pause_s > BROKER_CHECK_S:
                logger.warning("%s; looking again in %.1f s", error, pause_s)

    def _stop_asked(self, signum: int, frame: FrameType | None) -> None:
        self.stops_asked += 1

    def _stop_children(self) -> None:
        """Drain for at most the grace, or until asked again; then stop at once; then kill."""
        # Two requests may have come by now: the second holds.
        if asked := min(1, self.stops_asked):
            grace = format_duration(self.settings.stop_grace_s)
            logger.info("draining: running tasks get %s; asked again, they stop and go back to their queue", grace)
        self.state["state"] = "stopping"
        self._say()
        self.systemd.stopping("running tasks end, nothing new starts")
        self._signal_and_wait(signal.SIGTERM, self.settings.stop_grace_s, lambda: self.stops_asked > asked)
        self._signal_and_wait(signal.SIGQUIT, up.KILL_AFTER_S, lambda: False)
        self._signal_and_wait(signal.SIGKILL, up.KILL_AFTER_S, lambda: False)

    def _signal_and_wait(self, signum: int, timeout_s: float, hurry: Callable[[], bool]) -> None:
        for child in self.children:
            child.send(signum)
        deadline = time.monotonic() + timeout_s
        while any(child.alive for child in self.children) and (now := time.monotonic()) < deadline and not hurry():
            self._look_after_broker(now)  # a running task has a result to store
            time.sleep(POLL_S / 2)

    def _say(self) -> None:
        if self.state == self.said:
            return
        try:
            up.write_state(self.settings, self.state)
        except OSError as error:  # a full disk is no reason to stop working
            logger.warning("%s: %s", error.filename, error.strerror)
        self.said = dict(self.state)

    def _worker(self) -> list[str]:
        # Nothing to agree upon with other workers: to leave mingle out saves a second at the start.
        options = ["--hostname", f"{WORKER_NAME}@%h", "--pool", "prefork"]
        options += ["--without-mingle", "--without-gossip", "--loglevel", self.settings.log_level]
        return [*_celery(), "worker", *options]

    def _flower(self) -> list[str]:
        wanted = self.flower_port
        self.flower_port = free_port(wanted)
        if self.flower_port != wanted and wanted:
            logger.warning("port %s is taken, Flower gets %s", wanted, self.flower_port)
        self.state["flower"] = f"http://127.0.0.1:{self.flower_port}"
        return [*_celery(), "flower", "--address=127.0.0.1", f"--port={self.flower_port}", "--logging=error"]


def _celery() -> list[str]:
    return [sys.executable, "-W", NO_ROOT_WARNING, "-m", "celery", "--quiet", "-A", "agentlink.app"]


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
                continue
            chosen: int = probe.getsockname()[1]
            return chosen
    raise AgentLinkError("no TCP port is free on 127.0.0.1 for Flower; AGENTLINK_FLOWER=off goes without")


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=POLL_S).close()
    except OSError:
        return False
    return True
