"""A broker behind Sentinel: its master is killed, a replica is promoted, and nothing that it had is lost."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

from agentlink.broker import server
from tests.integration.system import System
from tests.waiting import wait_until

MASTER = "agents"
PASSWORD = "only-for-this-test"
PROMISED_S = 5.0

SERVER = f"""\
requirepass {PASSWORD}
masterauth {PASSWORD}
repl-diskless-sync-delay 0
save ""
appendonly yes
"""
SENTINEL = f"""\
sentinel monitor {MASTER} 127.0.0.1 {{master_port}} 1
sentinel auth-pass {MASTER} {PASSWORD}
sentinel down-after-milliseconds {MASTER} 1000
sentinel failover-timeout {MASTER} 3000
"""


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
    return port


@dataclass
class Cluster:
    """A master, its replica and one Sentinel, each on a port of its own."""

    folder: Path
    master_port: int = field(default_factory=_free_port)
    replica_port: int = field(default_factory=_free_port)
    sentinel_port: int = field(default_factory=_free_port)
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self) -> None:
        """Start all three; they know each other when this returns."""
        self._start(self.master_port, SERVER)
        self._start(self.replica_port, f"{SERVER}replicaof 127.0.0.1 {self.master_port}\n")
        replica, sentinel = self.client(self.replica_port), self.client(self.sentinel_port)
        wait_until(lambda: replica.info("replication")["master_link_status"] == "up", what="the replica's first copy")
        self._start(self.sentinel_port, SENTINEL.format(master_port=self.master_port), "--sentinel")
        wait_until(lambda: sentinel.sentinel_slaves(MASTER), what="the replica's name at the Sentinel")
        wait_until(lambda: sentinel.sentinel_slaves(MASTER)[0]["flags"] == "slave", what="its word to the Sentinel")

    def client(self, port: int) -> redis.Redis:
        password = None if port == self.sentinel_port else PASSWORD
        return redis.Redis(port=port, password=password, single_connection_client=False, decode_responses=True)

    def wait_for_replica(self) -> None:
        """Until the replica has everything that the master has now."""
        with self.client(self.master_port) as client, client.pipeline(transaction=False) as pipe:
            assert pipe.set("mark", "", ex=60).wait(1, 5000).execute()[1] == 1

    def kill_master(self) -> None:
        self.processes[self.master_port].kill()
        self.processes[self.master_port].wait()

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def _start(self, port: int, config: str, *options: str) -> None:
        folder = self.folder / str(port)
        folder.mkdir()
        (folder / "conf").write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\nlogfile {folder}/log\n{config}")
        self.processes[port] = subprocess.Popen([server.program(), folder / "conf", *options])
        client = self.client(port)
        wait_until(lambda: _answers(client), what=f"the server in {folder}")


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


@pytest.fixture
def cluster(system: System, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path / "cluster")
    cluster.folder.mkdir()
    try:
        cluster.start()
        yield cluster
        for worker in system.workers:
            worker.stop()
    finally:
        cluster.stop()


# What an agent's process does: it waits for one task, calls others before the master is killed, goes on until some of
# its calls are taken again, and then asks for the run it began with.
CALLER = """
import sys, threading, time
from pathlib import Path
from agentlink.broker.errors import BrokerUnavailable
from tests.integration import sample

folder = Path(sys.argv[1])
accepted, number = 0, 0

def call():
    global accepted, number
    number += 1
    begun = time.monotonic()
    try:
        sample.append_line.delay(str(folder / "ledger"), str(number))
    except BrokerUnavailable:
        outcome = "refused"
    else:
        outcome, accepted = "accepted", accepted + 1
    print("call", number, outcome, time.monotonic() - begun, flush=True)

run = sample.waits.delay(str(folder / "go"), str(folder / "started-1"))
held = sample.wait_for_file.delay(str(folder / "go"), started=str(folder / "started-2"))
waiting = threading.Thread(target=lambda: print("held", held.get(timeout=40), flush=True))
waiting.start()
while accepted < 20:
    call()
(folder / "called").touch()
while not (folder / "killed").exists():
    time.sleep(0.01)
while accepted < 25 and number < 1000:
    call()
(folder / "go").touch()
waiting.join()
print("answer", run.get(timeout=30), flush=True)
"""


def test_a_failover_loses_nothing_that_was_accepted_and_workers_go_on(
    system: System, cluster: Cluster, tmp_path: Path
) -> None:
    """Both tasks that ran keep their messages by the lease, which is on the new master too; the others are in its
    queues. A call while there is no master is refused in time, or taken by the new one.

    The first Sentinel of the address is not there: the next one is asked.
    """
    broker = {
        "broker_url": f"sentinel://:{PASSWORD}@127.0.0.1:{_free_port()};127.0.0.1:{cluster.sentinel_port}/0",
        "broker_master": MASTER,
    }
    worker = system.start_worker(**broker)
    with (tmp_path / "calls").open("wb") as calls:
        caller = subprocess.Popen(
            [sys.executable, "-c", CALLER, str(tmp_path)], cwd=tmp_path, env=system.environment(**broker), stdout=calls,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        for name in ("called", "started-1", "started-2"):
            wait_until((tmp_path / name).exists, what=name, timeout_s=20)
        cluster.wait_for_replica()
        cluster.kill_master()
        (tmp_path / "killed").touch()
        assert caller.wait(40) == 0, (tmp_path / "calls").read_text()
    finally:
        caller.kill()
        caller.wait()

    *made, held, answer = (tmp_path / "calls").read_text().splitlines()
    assert (held, answer) == ("held 0", "answer 2")
    outcomes = [line.split() for line in made]
    assert all(float(took_s) < PROMISED_S for _, _, _, took_s in outcomes)
    accepted = Counter(number for _, number, outcome, _ in outcomes if outcome == "accepted")
    ledger = tmp_path / "ledger"
    wait_until(lambda: len(ledger.read_text().split()) >= len(accepted), what="the accepted calls' lines")
    assert worker.stop() == 0
    assert Counter(ledger.read_text().split()) == accepted
    assert "another worker has it by now" not in worker.log
    assert PASSWORD not in worker.log
    new_master = cluster.client(cluster.replica_port)
    assert new_master.info("replication")["role"] == "master"
    assert list(new_master.scan_iter("agentlink:inflight:*")) == []
