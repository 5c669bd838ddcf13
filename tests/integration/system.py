"""A whole AgentLink for a test: the real embedded broker, and real workers started by the command line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import redis

from agentlink.broker import server
from agentlink.settings import Settings
from tests.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]

#: Keys that may stay for ever: queue bindings, queues, what workers have in flight and when their leases end, the list
#: of runs, schedules.
PERMANENT_KEYS = ("_kombu.binding", "cpu", "io", "agentlink:leases", "agentlink:inflight:", "agentlink:started:")
PERMANENT_KEYS += ("agentlink:runs", "agentlink:schedule")


@dataclass
class Worker:
    """A worker started by the command line, and what it has logged."""

    process: subprocess.Popen[bytes]
    log_path: Path
    name: str

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def children(self) -> list[int]:
        """The pids of its pool processes. The broker is a child of the worker that has started it."""
        children = psutil.Process(self.pid).children()
        return [child.pid for child in children if child.name() != "valkey-server"]

    def wait_for_log(self, text: str, timeout_s: float = 20, times: int = 1) -> None:
        wait_until(
            lambda: self.log.count(text) >= times or self.process.poll() is not None,
            what=f"{text!r} in the log of {self.name}:\n{self.log[-3000:]}",
            timeout_s=timeout_s,
        )
        assert self.log.count(text) >= times, f"{self.name} ended without {text!r}:\n{self.log[-3000:]}"

    def kill(self) -> None:
        """SIGKILL the main process."""
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_s: float = 20) -> int:
        """SIGTERM (a warm shutdown), and SIGKILL if that takes too long; return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                for child in psutil.Process(self.pid).children(recursive=True):
                    child.kill()
                self.kill()
        return self.process.returncode


@dataclass
class System:
    """The broker under `settings.home` and the workers a test has started."""

    settings: Settings
    folder: Path
    workers: list[Worker] = field(default_factory=list)

    @property
    def client(self) -> redis.Redis:
        return server.connect(self.settings)

    def environment(self, **settings: str) -> dict[str, str]:
        """The environment of a process of this system, with `AGENTLINK_*` settings changed."""
        changed = {f"AGENTLINK_{name.upper()}": value for name, value in settings.items()}
        ours = {"AGENTLINK_HOME": str(self.settings.home), "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(REPOSITORY)}
        return os.environ | ours | changed

    def start_worker(
        self, *options: str, pool: str = "prefork", concurrency: int = 2, before: Sequence[str] = (), **settings: str
    ) -> Worker:
        """`celery -A tasks worker` with `AGENTLINK_*` settings, ready to take messages; `before` comes before that."""
        name = f"worker{len(self.workers)}"
        log_path = self.folder / f"{name}.log"
        command = [*before, sys.executable, "-W", "ignore", "-m", "celery", "-A", "tasks", "worker"]
        command += ["--loglevel", "INFO", "--hostname", f"{name}@test"]
        command += ["--pool", pool, "--concurrency", str(concurrency)]
        command += ["--without-mingle", "--without-gossip", *options]
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                command, cwd=REPOSITORY, env=self.environment(**settings), stdout=log, stderr=log,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        worker = Worker(process, log_path, name)
        self.workers.append(worker)
        worker.wait_for_log(f"{name}@test ready.")
        return worker

    def python(self, code: str, timeout_s: float = 30, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run a script as an agent's process would, in another folder."""
        return subprocess.run(
            [sys.executable, "-c", code], cwd=self.folder, env=self.environment(**settings), text=True,
            capture_output=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def broker_pid(self) -> int:
        info: dict[str, int] = self.client.info("server")
        return info["process_id"]

    def restart_broker(self) -> None:
        """SIGKILL the broker and start it again."""
        pid = self.broker_pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not psutil.pid_exists(pid) or _is_zombie(pid), what="the broker's end")
        server.ensure_running(self.settings)

    @contextlib.contextmanager
    def frozen_broker(self) -> Iterator[None]:
        """The broker takes connections and answers nothing."""
        pid = self.broker_pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def in_flight(self) -> int:
        """How many messages workers have taken and not yet acknowledged."""
        return sum(self.client.hlen(key) for key in self.client.scan_iter("agentlink:inflight:*"))

    def is_idle(self) -> bool:
        """Whether nothing runs, waits for a worker, or waits for its time."""
        client = self.client
        waiting = sum(client.llen(key) for key in client.scan_iter("cpu*", _type="list"))
        return waiting + client.zcard("agentlink:delayed:cpu") + self.in_flight() == 0

    def keys_without_ttl(self) -> list[str]:
        client = self.client
        keys = [key for key in client.scan_iter(count=1000) if not key.startswith(PERMANENT_KEYS)]
        with client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.ttl(key)
            return [key for key, ttl_s in zip(keys, pipe.execute(), strict=True) if ttl_s == -1]

    def processes_left(self) -> list[str]:
        """Processes with this home in their environment, but the broker and this one."""
        broker = self.broker_pid()
        left = []
        for process in psutil.process_iter(["pid", "cmdline"]):
            if process.pid in (broker, os.getpid()):
                continue
            with contextlib.suppress(psutil.Error):
                if process.environ().get("AGENTLINK_HOME") == str(self.settings.home) and not _is_zombie(process.pid):
                    left.append(f"{process.pid}: {' '.join(process.info['cmdline'] or [])}")
        return left


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
