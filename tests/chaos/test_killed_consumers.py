"""A consumer is killed at any moment, also as the broker hands it messages: none is lost.

There is no point in time between taking a message and recording who has it, because one step does both. That can't be
shown by stopping there; it is shown by many kills at random.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kombu import Connection, Producer

from agentlink.broker.lease import ACKNOWLEDGE_AT_ONCE
from tasks import app
from tests.chaos.cluster import Cluster
from tests.chaos.consumer import PREFETCH
from tests.integration.system import REPOSITORY
from tests.waiting import wait_until

KILLS = 200
LIVES_S = (0.0, 0.15)
LEASE_S = 1.0
QUEUE = "numbers"

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]


class Numbers:
    """Publishes 0, 1, 2 … until it is told to stop, never letting many wait."""

    def __init__(self, cluster: Cluster, connection: Connection) -> None:
        self.count = 0
        self._client = cluster.client
        self._producer = Producer(connection, routing_key=QUEUE, serializer="json")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._publish)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _publish(self) -> None:
        while not self._stopped.is_set():
            if self._client.llen(QUEUE) < 20 * PREFETCH:
                for _ in range(PREFETCH):
                    self._producer.publish(self.count)
                    self.count += 1
            time.sleep(0.002)  # the queue is long enough: nothing to do


@contextmanager
def consumers(cluster: Cluster, ledger: Path) -> Iterator[subprocess.Popen[str]]:
    """The parent of all consumers; they end with it."""
    command = [sys.executable, "-m", "tests.chaos.consumer", cluster.settings.url, QUEUE, str(ledger), str(LEASE_S)]
    log_path = cluster.folder / "consumers.log"
    with log_path.open("w") as log, subprocess.Popen(
        command, cwd=REPOSITORY, env=cluster.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        text=True,
    ) as parent:  # fmt: skip
        yield parent
        parent.kill()


def start_one(parent: subprocess.Popen[str]) -> int:
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write("\n")
    parent.stdin.flush()
    return int(parent.stdout.readline())


def entered(path: Path) -> Counter[int]:
    """How often each number has been entered, by lines that are there in full."""
    return Counter(int(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n"))


def test_two_hundred_kills_lose_nothing(cluster: Cluster, tmp_path: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(10_000))
    rng = random.Random(seed)
    path = tmp_path / "ledger"
    path.touch()
    with app.connection_for_write() as connection, consumers(cluster, path) as parent:
        numbers = Numbers(cluster, connection)
        for _ in range(KILLS):
            pid = start_one(parent)
            time.sleep(rng.uniform(*LIVES_S))  # it is killed at any moment, whatever it has done by then
            os.kill(pid, signal.SIGKILL)
        numbers.stop()
        last = start_one(parent)
        # All of them, not until nothing is queued and nothing in flight: between those two looks, what a dead consumer
        # had goes from the one to the other.
        wait_until(
            lambda: len(entered(path)) >= numbers.count, what=f"all {numbers.count} numbers (seed {seed})", timeout_s=30
        )
        wait_until(lambda: not cluster.in_flight(), what="the last acknowledgements")
        os.kill(last, signal.SIGKILL)
    times = entered(path)
    assert set(times) == set(range(numbers.count)), f"seed {seed}"
    repeated = sum(times.values()) - numbers.count
    print(f"\nseed {seed}: {numbers.count} messages, {KILLS} kills, {repeated} deliveries more than that")
    # A killed consumer's last messages, entered and not acknowledged: no more than wait for company.
    assert repeated <= KILLS * ACKNOWLEDGE_AT_ONCE
