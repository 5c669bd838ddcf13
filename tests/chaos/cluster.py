"""Workers with a short lease that are started again whenever they end."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial

import psutil

from tests.integration.system import REPOSITORY, System, Worker

LEASE_S = 2.0
WORKERS = 3
CHILDREN = 2


@dataclass
class Cluster(System):
    """The broker and a fixed number of workers, whatever becomes of each."""

    #: Those that run, or should.
    alive: list[Worker] = field(default_factory=list)
    #: Those of `alive` that have been killed or asked to end.
    doomed: set[str] = field(default_factory=set)
    #: What went wrong by itself.
    problems: list[str] = field(default_factory=list)

    def fill_up(self) -> None:
        """Start a worker for each that has ended."""
        for worker in [worker for worker in self.alive if worker.process.poll() is not None]:
            self.alive.remove(worker)
            if worker.name not in self.doomed:
                self.problems.append(f"{worker.name} ended by itself: status {worker.process.returncode}")
        while len(self.alive) < WORKERS:
            self.alive.append(self._spawn())

    def children_of(self, worker: Worker) -> list[int]:
        """The pids of its pool processes: none while it starts or has ended."""
        try:
            return worker.children()
        except psutil.NoSuchProcess:
            return []

    def _spawn(self) -> Worker:
        """A worker that may not be ready yet: also that is a moment to be killed in."""
        name = f"worker{len(self.workers)}"
        log_path = self.folder / f"{name}.log"
        command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "tasks", "worker", "--loglevel", "INFO"]
        command += ["--hostname", f"{name}@test", "--concurrency", str(CHILDREN), "--without-mingle"]
        imports = "tests.integration.sample,tests.chaos.work"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [*command, "--without-gossip"], cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=self.environment(lease=f"{LEASE_S}s", imports=imports),
                # A shell's background jobs ignore it, and so would a worker that is about to start.
                preexec_fn=partial(signal.signal, signal.SIGQUIT, signal.SIG_DFL),
            )  # fmt: skip
        worker = Worker(process, log_path, name)
        self.workers.append(worker)
        return worker
