"""What goes wrong, by the dice: each fault is one event that says whom it hit and when."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import redis

from agentlink.broker import server
from tests.chaos.cluster import LEASE_S, Cluster
from tests.integration.system import Worker
from tests.waiting import wait_until

#: Faults and how often each comes, of all together.
WEIGHTS = {
    "kill_child": 8,
    "kill_worker": 4,
    "stop_worker": 3,
    "end_worker": 3,
    "kill_broker": 2,
    "freeze_broker": 1,
    "quit_worker": 1,
}
#: Time between two of them, at least and at most. Some last longer than that, so they overlap.
PAUSE_S = (0.1, 1.5)
#: A worker that is asked to end has only tasks of milliseconds to wait for; this is for a broker that is away.
END_WITHIN_S = 30


@dataclass
class Event:
    """A fault: it hit a worker or one of its children (`child_pid`), or, where `worker` is empty, the broker."""

    kind: str
    worker: str
    child_pid: int | None = None
    began_at: float = field(default_factory=time.monotonic)
    #: None while it lasts.
    ended_at: float | None = None

    def end(self) -> None:
        self.ended_at = time.monotonic()

    def __str__(self) -> str:
        lasted = "" if self.ended_at is None else f" for {self.ended_at - self.began_at:.2f} s"
        return f"{self.began_at:.3f} {self.kind} {self.worker} {self.child_pid or ''}{lasted}"


class Dice:
    """Lets faults happen until it is told to stop, then mends everything."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self.events: list[Event] = []
        self._cluster = cluster
        self._rng = rng
        self._next_at = time.monotonic() + 2.0
        #: What has to be done when a fault is over, and when that is.
        self._endings: list[tuple[float, Callable[[], None]]] = []

    def roll(self) -> None:
        """Do what is due: end faults, start workers, let the next thing go wrong."""
        now = time.monotonic()
        self._end_faults(until=now)
        self._cluster.fill_up()
        if now >= self._next_at:
            kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
            getattr(self, f"_{self._rng.choices(kinds, weights)[0]}")()
            self._next_at = now + self._rng.uniform(*PAUSE_S)

    def mend(self) -> None:
        """End every fault. Ending one may take a while, and begin another wait."""
        wait_until(self._all_have_ended, what="the end of every fault", timeout_s=2 * END_WITHIN_S)
        server.ensure_running(self._cluster.settings)

    def _all_have_ended(self) -> bool:
        self._end_faults(until=float("inf"))
        return not self._endings

    def _end_faults(self, until: float) -> None:
        due = [ending for ending in self._endings if ending[0] <= until]
        self._endings = [ending for ending in self._endings if ending[0] > until]
        for _, end in sorted(due, key=lambda ending: ending[0]):
            end()

    def _later(self, after_s: float, do: Callable[[], None]) -> None:
        self._endings.append((time.monotonic() + after_s, do))

    def _begin(self, kind: str, worker: str = "", child_pid: int | None = None) -> Event:
        event = Event(kind, worker, child_pid)
        self.events.append(event)
        return event

    def _victim(self) -> Worker | None:
        """A worker nothing is happening to."""
        lasting = {event.worker for event in self.events if event.ended_at is None}
        candidates = [worker for worker in self._cluster.alive if worker.name not in lasting | self._cluster.doomed]
        return self._rng.choice(candidates) if candidates else None

    def _kill_child(self) -> None:
        """Not of a worker that has just started: Celery gives up if a process dies before the first is used."""
        worker = self._victim()
        children = self._cluster.children_of(worker) if worker and "received" in worker.log else []
        if worker is None or not children:
            return
        pid = self._rng.choice(children)
        event = self._begin("kill_child", worker.name, pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        event.end()

    def _kill_worker(self) -> None:
        if worker := self._victim():
            event = self._begin("kill_worker", worker.name)
            self._cluster.doomed.add(worker.name)
            worker.kill()
            event.end()

    def _stop_worker(self) -> None:
        """Its children go on meanwhile."""
        if worker := self._victim():
            event = self._begin("stop_worker", worker.name)
            worker.process.send_signal(signal.SIGSTOP)

            def go_on() -> None:
                worker.process.send_signal(signal.SIGCONT)
                event.end()

            self._later(self._rng.uniform(1.2, 2.5) * LEASE_S, go_on)

    def _end_worker(self) -> None:
        """It ends when its tasks have."""
        self._ask_to_end("end_worker", signal.SIGTERM)

    def _quit_worker(self) -> None:
        """It ends and its tasks with it."""
        self._ask_to_end("quit_worker", signal.SIGQUIT)

    def _ask_to_end(self, kind: str, signum: signal.Signals) -> None:
        if worker := self._victim():
            event = self._begin(kind, worker.name)
            self._cluster.doomed.add(worker.name)
            worker.process.send_signal(signum)
            self._wait_for_end(worker, event, time.monotonic() + END_WITHIN_S)

    def _wait_for_end(self, worker: Worker, event: Event, deadline: float) -> None:
        if worker.process.poll() is not None:
            event.end()
        elif time.monotonic() > deadline:
            self._cluster.problems.append(f"{worker.name} did not end within {END_WITHIN_S} s of {event}, see its log")
            worker.process.send_signal(signal.SIGUSR1)  # Celery logs all threads' stacks then
            time.sleep(1)  # for the log alone: a worker that is stuck may not write it, so there is nothing to wait for
            worker.kill()
            event.end()
        else:
            self._later(0.1, lambda: self._wait_for_end(worker, event, deadline))

    def _kill_broker(self) -> None:
        if pid := self._broker_pid():
            event = self._begin("kill_broker")
            os.kill(pid, signal.SIGKILL)
            self._later(self._rng.uniform(0.0, 1.5) * LEASE_S, lambda: self._broker_is_back(event))

    def _freeze_broker(self) -> None:
        if pid := self._broker_pid():
            event = self._begin("freeze_broker")
            os.kill(pid, signal.SIGSTOP)

            def thaw() -> None:
                os.kill(pid, signal.SIGCONT)
                self._broker_is_back(event)

            self._later(self._rng.uniform(0.5, 2.0) * LEASE_S, thaw)

    def _broker_pid(self) -> int | None:
        """As the server tells it, and its lock should, too; None while something is happening to it."""
        if any(event.ended_at is None for event in self.events if not event.worker):
            return None
        named = server.holder(self._cluster.settings)
        try:
            pid = self._cluster.broker_pid()
        except redis.RedisError as error:
            self._cluster.problems.append(f"the broker, which its lock says is {named}, does not answer: {error}")
            return None
        if named != pid:
            self._cluster.problems.append(f"the broker is {pid}, and its lock says {named}")
        return pid

    def _broker_is_back(self, event: Event) -> None:
        server.ensure_running(self._cluster.settings)
        event.end()
