"""A worker's heartbeat, whatever its pool, and what `agentlink health` makes of it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agentlink import heartbeats
from agentlink.monitoring.health_ready import system_ready
from tests.integration import sample
from tests.integration.own_home import OwnHome, own_home
from tests.integration.system import System, Worker
from tests.integration.test_guard import remote
from tests.waiting import wait_until


def _health(system: System, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agentlink", "health", *options], cwd=system.folder, env=system.environment(),
        text=True, capture_output=True, timeout=20, check=False,
    )  # fmt: skip


def _is_well(system: System, *options: str) -> bool:
    return _health(system, *options).returncode == 0


def _wait_for_beats(system: System, worker: Worker, count: int = 2) -> None:
    for _ in range(count):
        before = _last_beat(system, worker)
        wait_until(lambda before=before: _last_beat(system, worker) > before, what="a heartbeat")  # type: ignore[misc]


def _last_beat(system: System, worker: Worker) -> float:
    heartbeat = heartbeats.of_process(system.settings.home, worker.pid)
    assert heartbeat is not None
    return heartbeat.at


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_every_pool_has_a_heartbeat_until_it_stops(system: System, pool: str) -> None:
    worker = system.start_worker(pool=pool)
    _wait_for_beats(system, worker)
    answer = _health(system, "--ready")
    assert (answer.returncode, answer.stdout) == (0, "worker0@test: takes tasks\n")
    assert worker.stop() == 0
    assert "no worker has started" in _health(system).stdout


def test_a_solo_worker_lives_while_its_task_holds_the_main_loop(system: System, tmp_path: Path) -> None:
    worker = system.start_worker(pool="solo")
    result = sample.wait_for_file.delay(str(tmp_path / "go"), started=str(tmp_path / "started"))
    wait_until((tmp_path / "started").exists, what="the task's start")
    _wait_for_beats(system, worker)
    (tmp_path / "go").touch()
    result.get(timeout=20)


def test_a_paused_worker_lives(system: System) -> None:
    worker = system.start_worker()
    assert remote(system, "control", "guard_pause", "for lunch")["state"] == "paused"
    _wait_for_beats(system, worker)
    assert _is_well(system)


def test_a_worker_that_hangs_or_was_killed_is_dead(system: System) -> None:
    worker = system.start_worker()
    worker.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: not _is_well(system, "--within", "3s"), what="a hanging worker to be noticed")
    assert "its main loop has not turned for" in _health(system, "--within", "3s").stdout
    worker.process.send_signal(signal.SIGCONT)
    wait_until(lambda: _is_well(system, "--within", "3s"), what="it to be well again")
    worker.kill()
    assert _health(system).stdout == f"worker0@test: was killed (pid {worker.pid})\n"
    again = system.start_worker()
    assert again.name != worker.name
    heartbeats.forget_the_dead(system.settings.home)
    assert _is_well(system)


def test_a_worker_lives_while_the_broker_is_away_and_is_not_ready(system: System) -> None:
    worker = system.start_worker()
    with system.frozen_broker():
        wait_until(lambda: not _is_well(system, "--ready"), what="the worker to notice", timeout_s=40)
        _wait_for_beats(system, worker)
        assert _health(system).stdout == "worker0@test: waits for the broker\n"
    wait_until(lambda: _is_well(system, "--ready"), what="the worker to be back", timeout_s=40)


def test_systemd_hears_of_a_workers_start_life_and_end_and_its_tasks_do_not_know_it(
    system: System, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        worker = system.start_worker(before=["env", f"NOTIFY_SOCKET={tmp_path / 'notify'}"])
        assert systemd.recv(1000) == b"READY=1\nSTATUS=takes tasks"
        assert systemd.recv(1000) == b"WATCHDOG=1"
        assert sample.variable.delay("NOTIFY_SOCKET").get(timeout=20) is None
        assert sample.variable.delay("AGENTLINK_HOME").get(timeout=20) is not None
        worker.stop()
        told = []
        while not told or not told[-1].startswith(b"STOPPING=1"):
            told.append(systemd.recv(1000))
    assert set(told[:-1]) <= {b"WATCHDOG=1"}


def test_up_tells_systemd_when_everything_works_and_when_it_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with own_home(tmp_path) as home, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        command = home.start_agentlink("up", flower="off")
        while (told := systemd.recv(1000)) == b"WATCHDOG=1":  # before that, systemd does not care
            pass
        assert told == b"READY=1\nSTATUS=up; Flower: off"
        assert systemd.recv(1000) == b"WATCHDOG=1"
        assert _told_health(home) == "takes tasks"
        command.signal(signal.SIGTERM)
        while not told.startswith(b"STOPPING=1"):
            told = systemd.recv(1000)
        assert command.wait() == 0


def _told_health(home: OwnHome) -> str:
    answer = home.agentlink("health", "--ready")
    assert answer.returncode == 0, answer.stdout
    return answer.stdout.strip().partition(": ")[2]


def test_the_system_is_ready_when_the_broker_takes_calls_and_a_worker_is_there(system: System) -> None:
    assert system_ready() == (False, ["no worker is connected to the broker"])
    worker = system.start_worker()
    assert system_ready() == (True, ["the broker takes calls", "workers connected: 1"])
    assert remote(system, "control", "guard_pause", "for lunch")["state"] == "paused"
    assert system_ready().ok, "calls are taken, and wait"
    used: int = system.client.info("memory")["used_memory"]
    system.client.config_set("maxmemory", used)
    try:
        assert not system_ready().ok
        assert system_ready().reasons[0].startswith("the broker is full: it uses 1")
    finally:
        system.client.config_set("maxmemory", system.settings.broker_memory_bytes)
    with system.frozen_broker():
        assert system_ready() == (False, [f"the broker at {system.settings.shown_url} does not answer"])
    worker.stop()
    assert system_ready().reasons == ["no worker is connected to the broker"]
