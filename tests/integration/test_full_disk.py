"""The disk that everything is kept on runs full: nothing starts, then nothing is stored, then all goes on again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from celery.result import AsyncResult

from agentlink.broker import server
from agentlink.broker.errors import BrokerUnavailable
from agentlink.settings import load
from tests.chaos import ledger, work
from tests.integration import large, sample
from tests.integration.conftest import running_system
from tests.integration.system import System
from tests.integration.test_guard import inspect
from tests.small_disk import MB, Ballast, small_disk
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

DISK_MB = 96
#: Below 32 MB nothing more starts. The lease is short: the disk is full for longer than that.
SETTINGS = {
    "disk_free": "32MB",
    "disk_free_share": "50%",
    "lease": "2s",
    "imports": "tests.integration.sample,tests.integration.large,tests.chaos.work",
}
#: On the disk it takes half of that, more than is left.
LARGE_BYTES = 400_000


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """The home of all tests, on a small disk for the time of this one."""
    settings = load()
    server.stop(settings)
    with small_disk(settings.home, DISK_MB) as mounted:
        if not mounted:
            pytest.skip("needs the right to mount a disk")
        Path(os.environ["AGENTLINK_CONFIG"]).touch()  # the one that was there is below the disk
        try:
            with running_system(tmp_path) as system:
                yield system
        finally:
            server.stop(settings)


@pytest.fixture
def ballast(system: System) -> Iterator[Ballast]:
    ballast = Ballast(system.settings.home)
    yield ballast
    ballast.remove()


def call(path: Path, numbers: range) -> tuple[dict[int, AsyncResult], list[str]]:
    """Call a task that enters the ledger, for each number; the results of calls accepted, and why others were not."""
    accepted, refused = {}, []
    for number in numbers:
        try:
            accepted[number] = work.enter.delay(number, str(path), 0.0)
        except BrokerUnavailable as error:
            refused.append(str(error))
    return accepted, refused


def check_each_ran_once(path: Path, accepted: dict[int, AsyncResult]) -> None:
    """And nothing that was refused ran at all."""
    for result in accepted.values():
        result.get(timeout=60)
    attempts = ledger.read(path) if path.exists() else {}
    assert {number: len(tries) for number, tries in attempts.items()} == dict.fromkeys(accepted, 1)


def hold(system: System, name: str, call: Callable[[str, str], AsyncResult]) -> tuple[AsyncResult, Path]:
    """A call whose task has begun, and the file that lets it end; `call` gets that and the file that says it began."""
    go, started = system.folder / f"{name}-go", system.folder / f"{name}-started"
    result = call(str(go), str(started))
    wait_until(started.exists, what=f"the start of {name}")
    return result, go


def waiting(go: str, started: str) -> AsyncResult:
    return sample.wait_for_file.delay(go, 60, 0, started)


def paused_for_the_disk(system: System) -> bool:
    guard = inspect(system, "guard", **SETTINGS)
    return guard["state"] == "paused" and guard["resources"]["disk_free"]["level"] == "pause"


def test_a_disk_that_runs_full_lets_nothing_more_start_and_what_runs_end(system: System, ballast: Ballast) -> None:
    """Calls are accepted meanwhile, and run when there is room again."""
    worker = system.start_worker(**SETTINGS)
    path, broker_pid = system.folder / "ledger", system.broker_pid()
    held, go = hold(system, "held", waiting)
    ballast.leave(24 * MB)
    wait_until(lambda: paused_for_the_disk(system), what="the pause", timeout_s=30)
    assert "free space on" in inspect(system, "guard", **SETTINGS)["reason"]
    accepted, refused = call(path, range(20))
    go.touch()
    assert held.get(timeout=20) == 0
    assert (len(accepted), refused, path.exists()) == (20, [], False)
    ballast.remove()
    check_each_ran_once(path, accepted)
    assert (worker.process.poll(), system.broker_pid()) == (None, broker_pid)


def test_a_disk_full_to_the_last_byte_holds_everything_up_and_loses_nothing(system: System, ballast: Ballast) -> None:
    """What has ended waits with its result, small or large, or with what comes next; calls are refused."""
    worker = system.start_worker(concurrency=4, **SETTINGS)
    path, broker_pid = system.folder / "ledger", system.broker_pid()
    held = {
        "small": hold(system, "small", waiting),
        "run": hold(system, "run", sample.waits.delay),
        "large": hold(system, "large", partial(large.noise_when_there.delay, LARGE_BYTES)),
    }
    ballast.leave(0)
    for _, go in held.values():
        go.touch()
    accepted, refused = call(path, range(20))
    assert len(refused) > 10  # the last block of the file takes a few
    assert all("can't write to its disk" in reason for reason in refused), refused
    worker.wait_for_log("nothing can be stored yet")
    worker.wait_for_log("the broker can't be told yet")
    worker.wait_for_log("the broker is not reached")
    assert server.is_running(system.settings)
    wait_until(partial(_lease_is_over, system), what="the end of a lease that nobody could renew")

    ballast.remove()
    assert held["small"][0].get(timeout=30) == 0
    assert held["run"][0].get(timeout=30) == 2
    assert len(held["large"][0].get(timeout=30)) == LARGE_BYTES
    check_each_ran_once(path, accepted)
    assert (worker.process.poll(), system.broker_pid()) == (None, broker_pid)
    system.restart_broker()  # and all of it is in the file
    assert {result.get(timeout=10) for result in accepted.values()} == {
        attempt.id for attempts in ledger.read(path).values() for attempt in attempts
    }


def _lease_is_over(system: System) -> bool:
    [(_, ends_ms)] = system.client.zrange("agentlink:leases", 0, -1, withscores=True)
    seconds, _ = system.client.time()
    return bool(ends_ms < (seconds - 1) * 1000)
