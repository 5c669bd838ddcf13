"""How long results in files are kept, and what a full disk means to the tasks that run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery.result import AsyncResult

from agentlink.broker.arguments import RUNS_PREFIX
from agentlink.broker.errors import ResultNotStored
from agentlink.broker.sweep_step import lookups
from agentlink.broker.sweeping import Sweeper, Swept
from resource_guard.errors import ResultLost
from resource_guard.retention import folder_bytes
from resource_guard.storage import Storage
from tasks import app
from tests.integration import large, sample
from tests.integration.system import System
from tests.small_disk import filled_disk
from tests.waiting import wait_until

MODULES = "tests.integration.sample,tests.integration.large"
LARGE = 100_000
DAY = 86400.0


@pytest.fixture
def storage(system: System) -> Storage:
    """Where this system keeps large results; empty."""
    storage = Storage(system.settings.storage_location)
    for file in storage.files():
        storage.remove(file)
    return storage


@pytest.fixture
def client(system: System) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(system.settings.socket_path))


def _digest(system: System, task_id: str) -> str:
    digest: str = json.loads(system.client.get(f"celery-task-meta-{task_id}"))["result"]["agentlink_stored"]
    return digest


def _sweeper(system: System, client: redis.Redis, **settings: object) -> Sweeper:
    return Sweeper(system.settings.model_copy(update=settings), lambda: client, lookups)


def test_a_worker_removes_a_result_on_time(system: System, storage: Storage) -> None:
    """Not before its time, when the broker forgets it too, and soon after."""
    system.start_worker(imports=MODULES, keep_results="4s", soft_time_limit="1s", hard_time_limit="2s")
    begun = time.monotonic()
    call = large.noise.delay(LARGE)
    assert len(call.get(timeout=30)) == LARGE
    wait_until(lambda: not storage.files(), what="the removal of the result", timeout_s=20)
    assert 4 < time.monotonic() - begun < 15
    assert not system.client.exists(f"celery-task-meta-{call.id}")


def test_what_belongs_to_a_run_that_goes_on_stays_however_old_it_is(
    system: System, storage: Storage, client: redis.Redis
) -> None:
    """And goes with the next sweep after the run's end."""
    system.start_worker(imports=MODULES)
    go = system.folder / "go"
    run = large.large_then_waits.delay(LARGE, str(go))
    [file] = wait_until(storage.files, what="the step's result")
    wait_until(lambda: client.exists(RUNS_PREFIX + file.digest), what="that it is known whose that is")
    sweeper = _sweeper(system, client)
    later = time.time() + 30 * DAY
    assert sweeper.sweep(later).expired == 0
    assert client.ttl(RUNS_PREFIX + file.digest) > 7 * DAY
    go.touch()
    run.get(timeout=30)
    assert sweeper.sweep(time.time()).expired == 0
    assert sweeper.sweep(later) == Swept(expired=1, freed_bytes=file.stored_bytes)


def test_over_the_quota_the_oldest_results_go_first_and_none_of_a_run_that_goes_on(
    system: System, storage: Storage, client: redis.Redis
) -> None:
    """Whoever asks for one is told why it may be gone."""
    system.start_worker(imports=MODULES)
    go = system.folder / "go"
    run = large.large_then_waits.delay(LARGE, str(go))
    [held] = wait_until(storage.files, what="the step's result")
    wait_until(lambda: client.exists(RUNS_PREFIX + held.digest), what="that it is known whose that is")
    calls = [large.noise.delay(LARGE, seed) for seed in range(1, 4)]
    for call in calls:
        call.get(timeout=30)
    digests = [_digest(system, call.id) for call in calls]
    for age_s, digest in zip((4000, 2000, 3000), digests, strict=True):
        os.utime(storage.path(digest), (time.time() - age_s,) * 2)
    os.utime(storage.path(held.digest), (time.time() - 5000,) * 2)
    room = 3 * held.stored_bytes - held.stored_bytes // 2  # two and a half results
    elsewhere = {"storage": system.settings.storage_location, "disk_quota_bytes": room}
    swept = _sweeper(system, client, **elsewhere).sweep(time.time())
    assert swept.crowded_out == 2
    assert {file.digest for file in storage.files()} == {held.digest, digests[1]}
    with pytest.raises(ResultLost, match="AGENTLINK_DISK_QUOTA"):
        AsyncResult(calls[0].id, app=app).get(timeout=5)
    go.touch()
    run.get(timeout=30)


def test_the_quota_counts_whatever_is_below_the_home(system: System, client: redis.Redis, storage: Storage) -> None:
    """The runs' folders and the broker's data too; only results make room, a little before it is used up."""
    result = storage.path(storage.put([b"an old result"]).digest)
    os.utime(result, (time.time() - 4000,) * 2)
    ballast = system.settings.runs_folder / "run" / "stdout"
    ballast.parent.mkdir(parents=True)
    ballast.write_bytes(b"x" * 20_000_000)
    try:
        used_bytes = folder_bytes(system.settings.home)
        assert _sweeper(system, client, disk_quota_bytes=int(used_bytes / 0.8)).sweep(time.time()).crowded_out == 0
        assert _sweeper(system, client, disk_quota_bytes=int(used_bytes / 0.98)).sweep(time.time()).crowded_out == 1
    finally:
        ballast.unlink()
        ballast.parent.rmdir()


def test_of_several_sweepers_one_sweeps_at_a_time(system: System, client: redis.Redis, storage: Storage) -> None:
    """And not again at once, whoever comes."""
    first, second = _sweeper(system, client), _sweeper(system, client)
    assert first.sweep_in_turn() == Swept()
    assert second.sweep_in_turn() is None
    other_disk = _sweeper(system, client, storage=str(system.folder / "other"))
    assert other_disk.sweep_in_turn() == Swept()


def test_the_folders_of_forgotten_runs_go(system: System, client: redis.Redis) -> None:
    system.start_worker(imports=MODULES)
    run = sample.immediate.delay(1)
    run.get(timeout=30)
    folders = [system.settings.runs_folder / name for name in (run.id, "forgotten")]
    for folder in folders:
        folder.mkdir(parents=True)
    sweeper = _sweeper(system, client)
    assert sweeper.sweep(time.time() + 3 * DAY).folders == 0
    assert sweeper.sweep(time.time() + 8 * DAY).folders == 1
    assert [folder.exists() for folder in folders] == [True, False]
    folders[0].rmdir()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 4 MB, full but for one."""
    with filled_disk(tmp_path / "disk", 4, 3_000_000) as disk:
        yield disk


def test_on_a_full_disk_a_task_waits_with_its_result_and_others_go_on(system: System, small_disk: Path) -> None:
    worker = system.start_worker(imports=MODULES, storage=str(small_disk / "results"), concurrency=2)
    call = large.noise.delay(4_000_000)
    worker.wait_for_log("nothing can be stored yet")
    assert sample.add.delay(1, 1).get(timeout=10) == 2
    assert call.state == "PENDING"
    (small_disk / "filler").unlink()
    wait_until(lambda: call.state == "SUCCESS", what="the result")
    reader = Storage(str(small_disk / "results"))
    assert [file.stored_bytes > 1_900_000 for file in reader.files()] == [True]


def test_a_disk_that_stays_full_fails_the_task_with_one_clear_error(system: System, small_disk: Path) -> None:
    """After as long as it would have waited for a full broker."""
    modules = f"{MODULES},tests.integration.impatient"
    system.start_worker(imports=modules, storage=str(small_disk / "results"))
    call = large.noise.delay(4_000_000)
    with pytest.raises(ResultNotStored, match=r"no room for a large value in .*No space left") as raised:
        call.get(timeout=30)
    assert raised.value.task_id == call.id
    assert [path.name for path in (small_disk / "results").rglob("*") if path.is_file()] == []
