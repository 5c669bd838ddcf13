"""What the guard does to the processes of a real worker's pool. The worker's own guard is off: it would do it too."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from tasks import app
from tests.integration import sample
from tests.integration.system import System, Worker
from tests.waiting import wait_until

IMPORTS = "tests.integration.sample,tests.integration.pool_steps"


def recycle_idle() -> list[int]:
    """Have the worker replace its idle processes; which those were."""
    with app.connection_for_write() as connection:  # one of the pool may be of a broker that another test has killed
        [answer] = app.control.broadcast("recycle_idle", reply=True, timeout=5, limit=1, connection=connection)
    pids: list[int] = answer["worker0@test"]
    return pids


@pytest.mark.parametrize(
    ("limits", "error"),
    [({"soft_time_limit": 1, "time_limit": 60}, SoftTimeLimitExceeded), ({"time_limit": 1}, TimeLimitExceeded)],
    ids=["soft", "hard"],
)
def test_a_task_that_is_slowed_down_has_its_time(
    system: System, monkeypatch: pytest.MonkeyPatch, limits: dict[str, Any], error: type[Exception]
) -> None:
    """A second at 30 % takes 3.3 s: only then the limit comes. At full speed it comes after a second."""
    task = sample.wait_for_file.si("never") if error is SoftTimeLimitExceeded else sample.wait_for_ever.si()
    call = task.set(**limits)
    system.start_worker(imports=IMPORTS, guard="0")
    at_full_speed_s = _fails_after_s(call, error)
    assert 0.9 < at_full_speed_s < 2.5
    system.workers[0].stop()

    monkeypatch.setenv("TEST_RUN_FRACTION", "0.3")
    worker = system.start_worker(imports=IMPORTS, guard="0")
    assert 2.9 < _fails_after_s(call, error) < 6
    wait_until(lambda: not _stopped(worker), what="all processes to go on")


def _fails_after_s(call: Any, error: type[Exception]) -> float:
    began = time.monotonic()
    with pytest.raises(error):
        call.apply_async().get(timeout=20)
    return time.monotonic() - began


def test_a_slowed_down_worker_stops_and_leaves_nobody_stopped(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a task running: it is finished first."""
    monkeypatch.setenv("TEST_RUN_FRACTION", "0.3")
    worker = system.start_worker(imports=IMPORTS, guard="0")
    release, started = system.folder / "release", system.folder / "started"
    result = sample.wait_for_file.delay(str(release), started=str(started))
    wait_until(started.exists, what="the task")
    wait_until(lambda: _stopped(worker), what="a pause")
    worker.process.terminate()
    release.touch()
    assert worker.process.wait(timeout=20) == 0
    assert result.get(timeout=5) == 0


def _stopped(worker: Worker) -> list[int]:
    return [pid for pid in worker.children() if psutil.Process(pid).status() == psutil.STATUS_STOPPED]


def test_idle_processes_are_replaced_and_busy_ones_left_alone(system: System) -> None:
    worker = system.start_worker(imports=IMPORTS, guard="0")
    release, started = system.folder / "release", system.folder / "started"
    result = sample.wait_for_file.delay(str(release), started=str(started))
    wait_until(started.exists, what="the task")
    busy = int(wait_until(started.read_text, what="the pid of the task's process"))
    [idle] = set(worker.children()) - {busy}

    assert recycle_idle() == [idle]
    wait_until(lambda: not psutil.pid_exists(idle) and len(worker.children()) == 2, what="a new process", timeout_s=5)
    assert busy in worker.children()
    assert [sample.add.delay(number, 1).get(timeout=10) for number in range(5)] == [1, 2, 3, 4, 5]
    release.touch()
    assert result.get(timeout=10) == 0
    assert "exited with" not in worker.log


def test_no_task_is_lost_or_run_twice_while_idle_processes_are_replaced(system: System, tmp_path: Path) -> None:
    """Again and again, as tasks come in."""
    worker = system.start_worker(imports=IMPORTS, guard="0")
    ledger = tmp_path / "ledger"
    replaced: list[int] = []
    results = []
    for round_ in range(8):
        results += [sample.append_line.delay(str(ledger), f"{round_}-{number}") for number in range(5)]
        replaced += recycle_idle()
    for result in results:
        result.get(timeout=20)
    wait_until(lambda: len(worker.children()) == 2, what="a whole pool")
    replaced += recycle_idle()
    lines = ledger.read_text().split()
    assert sorted(lines) == sorted(f"{round_}-{number}" for round_ in range(8) for number in range(5))
    assert replaced
    assert "WorkerLostError" not in worker.log
