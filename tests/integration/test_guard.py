"""The guard in real workers: what a worker under memory pressure does, and that it answers all the while."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration import sample
from tests.integration.system import REPOSITORY, System, Worker
from tests.waiting import wait_until

PAUSED = "takes no new tasks: memory of this worker's processes"
RESUMED = "takes tasks again after"
#: A worker takes 60 to 130 MB here; `HOLD_BYTES` on top is over the soft limit of 425 MB, without it is below resume.
LIMITS = {"memory": "500MB", "memory_soft": "85%", "memory_resume": "75%", "memory_free": "0"}
HOLD_BYTES = 450_000_000


def inspect(system: System, command: str, **settings: str) -> Any:
    """What the one worker answers to `celery -A tasks inspect`; None if it doesn't."""
    answer = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tasks", "inspect", "--timeout", "2", "--json", command],
        cwd=REPOSITORY, env=system.environment(**settings), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return json.loads(answer.stdout)["worker0@test"] if answer.returncode == 0 else None


def put_under_pressure(system: System, worker: Worker) -> tuple[Path, Any]:
    """Let a task hold more memory than the soft limit; return the file that ends it, and its result."""
    release, started = system.folder / "release", system.folder / "started"
    held = sample.wait_for_file.delay(str(release), hold_bytes=HOLD_BYTES, started=str(started))
    wait_until(started.exists, what=f"the task that holds memory:\n{worker.log[-3000:]}", timeout_s=20)
    worker.wait_for_log(PAUSED, timeout_s=1)
    return release, held


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_over_its_soft_limit_takes_nothing_more_until_there_is_room(system: System, pool: str) -> None:
    """Paused within a second, the running task untouched, `inspect` answered, going on within two seconds after."""
    worker = system.start_worker(pool=pool, **LIMITS)
    release, held = put_under_pressure(system, worker)
    ledger = system.folder / "ledger"
    sample.append_line.delay(str(ledger), "waited")

    assert inspect(system, "ping") == {"ok": "pong"}
    status = inspect(system, "guard")
    assert status["state"] == "paused"
    assert status["tree_bytes"] > status["soft_bytes"] == 425_000_000
    assert "is not yet below 375 MB (75% of 500 MB)" in status["reason"]

    # Both answers came seconds after the message; it is in its queue, not in the worker, and so free for another one.
    assert (system.client.llen("cpu"), system.in_flight()) == (1, 1)
    assert not ledger.exists()

    release.touch()
    assert held.get(timeout=10) == HOLD_BYTES
    ended = time.monotonic()
    wait_until(ledger.exists, what="the task that waited", timeout_s=5)
    assert time.monotonic() - ended < 2
    worker.wait_for_log(RESUMED)
    assert worker.log.count(PAUSED) == 1


def test_another_worker_takes_what_a_paused_one_leaves(system: System) -> None:
    """The paused worker hoards nothing, so with room elsewhere work goes on at once."""
    paused = system.start_worker(**LIMITS)
    release, held = put_under_pressure(system, paused)
    system.start_worker()
    assert [sample.add.delay(number, 1).get(timeout=10) for number in range(5)] == [1, 2, 3, 4, 5]
    assert "sample.add" not in paused.log.split(PAUSED)[1]
    release.touch()
    assert held.get(timeout=10) == HOLD_BYTES


def test_a_pause_survives_a_restart_of_the_broker(system: System) -> None:
    """A new connection has a new channel; the valve is put into that one as well."""
    worker = system.start_worker(**LIMITS)
    release, _ = put_under_pressure(system, worker)
    ledger = system.folder / "ledger"
    assert inspect(system, "guard")["state"] == "paused"
    system.restart_broker()
    worker.wait_for_log("Connected to", times=2)
    wait_until(lambda: inspect(system, "ping"), what="the worker's answer after it has reconnected", timeout_s=30)
    sample.append_line.delay(str(ledger), "waited")

    assert inspect(system, "guard")["state"] == "paused"
    assert system.client.llen("cpu") == 1
    assert not ledger.exists()

    release.touch()
    wait_until(ledger.exists, what="the task that waited")
    worker.wait_for_log(RESUMED)


def test_a_worker_takes_nothing_on_a_machine_that_is_short_of_memory(system: System) -> None:
    """What the machine must keep counts whoever uses it, from the first message on."""
    worker = system.start_worker(memory_free="1000TB")
    result = sample.add.delay(1, 1)
    assert "memory available on this machine" in inspect(system, "guard")["reason"]
    assert system.client.llen("cpu") == 1
    assert not result.ready()
    assert "that must stay free" in worker.log


def test_without_the_guard_a_worker_is_plain_celery(system: System) -> None:
    """`AGENTLINK_GUARD=0`: nothing watches, and `inspect guard` says so."""
    worker = system.start_worker(guard="0", **LIMITS)
    release, started = system.folder / "release", system.folder / "started"
    sample.wait_for_file.delay(str(release), hold_bytes=HOLD_BYTES, started=str(started))
    wait_until(started.exists, what="the task that holds memory", timeout_s=20)
    assert inspect(system, "guard", guard="0") == {"state": "off"}
    assert sample.add.delay(1, 1).get(timeout=10) == 2
    assert PAUSED not in worker.log
    release.touch()
