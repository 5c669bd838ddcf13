"""Health: what is made of heartbeat files, and when a worker writes them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentlink import heartbeats
from agentlink.monitoring.health import HEALTHY, UNHEALTHY, UNKNOWN, main, workers_live, workers_ready
from agentlink.monitoring.health_beat import Pulse
from agentlink.systemd import Notifier
from tests.waiting import wait_until


class Loop:
    """A consumer, and its timer: its main loop turns when the test says so."""

    pool = None

    def __init__(self) -> None:
        self.asked: list[Callable[[], None]] = []
        self.due: Callable[[], None] = lambda: None

    @property
    def timer(self) -> Any:
        return self

    def call_repeatedly(self, every_s: float, function: Callable[..., None], args: tuple[Any, ...]) -> Any:
        self.due = lambda: function(*args)
        return self

    def cancel(self) -> None:
        self.due = lambda: None

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.asked.append(callback)

    def turn(self) -> None:
        for callback in self.asked:
            callback()
        self.asked.clear()


def _age(home: Path, worker: str, age_s: float) -> None:
    then = time.time() - age_s
    os.utime(heartbeats._path(home, worker), (then, then))


def _dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def _rewrite(home: Path, worker: str, **facts: Any) -> None:
    path = heartbeats._path(home, worker)
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_a_worker_that_was_heard_of_lives(tmp_path: Path) -> None:
    heartbeats.say(tmp_path, "cpu@here", "ready")
    assert workers_live(tmp_path) == workers_ready(tmp_path) == (True, ["cpu@here: takes tasks"])


def test_one_whose_loop_has_not_turned_for_long_is_dead(tmp_path: Path) -> None:
    heartbeats.say(tmp_path, "cpu@here", "ready")
    _age(tmp_path, "cpu@here", 40)
    verdict = workers_live(tmp_path)
    assert not verdict.ok
    assert verdict.reasons == [f"cpu@here: its main loop has not turned for 40.0 s (pid {os.getpid()})"]
    assert workers_live(tmp_path, stale_s=60).ok


def test_one_that_was_killed_is_dead_at_once(tmp_path: Path) -> None:
    heartbeats.say(tmp_path, "cpu@here", "ready")
    heartbeats.say(tmp_path, "io@here", "ready")
    _rewrite(tmp_path, "io@here", pid=(pid := _dead_pid()))
    assert workers_live(tmp_path) == (False, [f"io@here: was killed (pid {pid})", "cpu@here: takes tasks"])
    assert workers_live(tmp_path, names=["cpu@here"]).ok
    heartbeats.forget_the_dead(tmp_path)
    assert workers_live(tmp_path) == (True, ["cpu@here: takes tasks"])


@pytest.mark.parametrize("state", ["starting", "waiting", "stopping"])
def test_one_that_takes_no_tasks_lives_and_is_not_ready(tmp_path: Path, state: heartbeats.State) -> None:
    heartbeats.say(tmp_path, "cpu@here", state)
    assert workers_live(tmp_path).ok
    assert not workers_ready(tmp_path).ok


def test_one_that_stops_may_take_as_long_as_its_tasks(tmp_path: Path) -> None:
    heartbeats.say(tmp_path, "cpu@here", "stopping")
    _age(tmp_path, "cpu@here", 4000)
    assert workers_live(tmp_path).ok


def test_where_no_worker_has_started_none_lives(tmp_path: Path) -> None:
    assert workers_live(tmp_path) == (False, [f"no worker has started on this host with the home {tmp_path}"])


def test_one_that_has_ended_as_it_should_is_not_missed(tmp_path: Path) -> None:
    for worker in ("cpu@here", "io@here"):
        heartbeats.say(tmp_path, worker, "ready")
    heartbeats.end(tmp_path, "io@here")
    assert workers_live(tmp_path).reasons == ["cpu@here: takes tasks"]
    assert not workers_live(tmp_path, names=["io@here"]).ok


def test_workers_of_other_hosts_are_for_those_hosts_to_judge(tmp_path: Path) -> None:
    """Containers may share a home."""
    heartbeats.say(tmp_path, "cpu@here", "ready")
    _rewrite(tmp_path, "cpu@here", host="elsewhere", pid=_dead_pid())
    heartbeats.say(tmp_path, "io@here", "ready")
    assert workers_live(tmp_path).reasons == ["io@here: takes tasks"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"worker": "x"}', "\xff"])
def test_what_is_no_heartbeat_is_passed_over(tmp_path: Path, text: str) -> None:
    heartbeats.say(tmp_path, "cpu@here", "ready")
    (tmp_path / "health" / "other.json").write_text(text, encoding="latin-1")
    assert workers_live(tmp_path).reasons == ["cpu@here: takes tasks"]


def test_the_command_tells_by_its_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AGENTLINK_HOME", str(tmp_path))
    assert main([]) == UNHEALTHY
    heartbeats.say(tmp_path, "cpu@here", "waiting")
    assert main([]) == main(["--worker", "cpu@here"]) == HEALTHY
    assert main(["--ready"]) == UNHEALTHY
    assert "cpu@here: waits for the broker" in capsys.readouterr().out
    _age(tmp_path, "cpu@here", 40)
    assert (main([]), main(["--within", "1m"])) == (UNHEALTHY, HEALTHY)
    monkeypatch.setenv("AGENTLINK_HOME", "/")
    assert main([]) == UNKNOWN


def test_the_home_may_stand_in_the_settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTLINK_HOME", raising=False)
    monkeypatch.setenv("AGENTLINK_CONFIG", str(tmp_path / "settings.toml"))
    (tmp_path / "settings.toml").write_text(f'home = "{tmp_path}"')
    heartbeats.say(tmp_path, "cpu@here", "ready")
    assert main([]) == HEALTHY


def test_an_address_that_does_not_answer_is_unhealthy(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        assert main(["--url", f"http://127.0.0.1:{taken.getsockname()[1]}/livez"]) == UNHEALTHY
    assert main(["--url", "file:///etc/passwd"]) == UNHEALTHY
    assert "does not answer: [Errno 111] Connection refused" in capsys.readouterr().out


def test_asking_imports_next_to_nothing() -> None:
    """It is asked every few seconds: what the other commands need would take ten times as long as its answer."""
    code = "import sys; from agentlink.monitoring import health; import agentlink.cli; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pydantic", "redis", "celery", "click", "psutil", "logging"} & set(answer.stdout.split())


def test_a_beat_comes_from_the_main_loop_alone(tmp_path: Path) -> None:
    """A timer that is a thread goes on while the loop hangs: it only asks for the beat."""
    pulse, loop = Pulse(tmp_path, "cpu@here", Notifier()), Loop()
    pulse.loop_turns(loop)
    _age(tmp_path, "cpu@here", 40)
    for _ in range(3):
        loop.due()
    assert len(loop.asked) == 1
    assert not workers_live(tmp_path).ok
    loop.turn()
    assert workers_live(tmp_path).ok
    loop.due()
    assert len(loop.asked) == 1


def test_while_the_broker_is_away_the_worker_lives(tmp_path: Path) -> None:
    """Celery waits for it outside its loop, for as long as that takes."""
    pulse = Pulse(tmp_path, "cpu@here", Notifier())
    pulse.loop_turns(Loop())
    pulse.loop_stops()
    _age(tmp_path, "cpu@here", 40)
    wait_until(lambda: workers_live(tmp_path).ok, what="a beat from elsewhere")
    assert workers_ready(tmp_path).reasons == ["cpu@here: waits for the broker"]
    pulse.loop_turns(Loop())
    assert workers_ready(tmp_path).ok
    wait_until(lambda: "heartbeat" not in [thread.name for thread in threading.enumerate()], what="the thread's end")


def test_a_heartbeat_that_was_removed_is_there_again(tmp_path: Path) -> None:
    pulse, loop = Pulse(tmp_path, "cpu@here", Notifier()), Loop()
    pulse.loop_turns(loop)
    heartbeats.end(tmp_path, "cpu@here")
    loop.due()
    loop.turn()
    assert workers_ready(tmp_path).ok


def test_a_heartbeat_that_can_not_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "health").touch()  # no folder can be made there
    pulse, loop = Pulse(tmp_path, "cpu@here", Notifier()), Loop()
    pulse.loop_turns(loop)
    for _ in range(3):
        loop.due()
        loop.turn()
    pulse.end()
    assert caplog.text.count("the heartbeat can't be written") == 1


def test_a_worker_that_is_looked_at_and_silent_all_the_while_hangs(tmp_path: Path) -> None:
    watch = heartbeats.Watch(tmp_path)
    assert not watch.hangs(os.getpid(), 0)
    assert not watch.hangs(os.getpid(), 100), "it has not begun yet"
    heartbeats.say(tmp_path, "cpu@here", "ready")
    _age(tmp_path, "cpu@here", 4000)
    assert not watch.hangs(os.getpid(), 101), "the machine has slept, and it has had no time to beat"
    assert not watch.hangs(os.getpid(), 130)
    assert watch.hangs(os.getpid(), 132)
    heartbeats.beat(tmp_path, "cpu@here")
    assert not watch.hangs(os.getpid(), 133)
    heartbeats.say(tmp_path, "cpu@here", "stopping")
    assert not watch.hangs(os.getpid(), 200)
    assert not watch.hangs(os.getpid(), 300)


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_of_start_life_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    address = f"@agentlink-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"\0{address[1:]}" if abstract else address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        pulse, loop = Pulse(tmp_path, "cpu@here", Notifier.of_this_process()), Loop()
        assert "NOTIFY_SOCKET" not in os.environ  # what it starts is not to speak in its name
        pulse.loop_turns(loop)
        loop.due()
        loop.turn()
        pulse.loop_stops()
        pulse.stopping()
        told = [systemd.recv(1000).decode() for _ in range(4)]
    assert told == [
        "READY=1\nSTATUS=takes tasks",
        "WATCHDOG=1",
        "STATUS=waits for the broker",
        "STOPPING=1\nSTATUS=ends its tasks, then stops",
    ]


def test_a_systemd_that_does_not_listen_is_no_trouble(tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "nobody"))
    notifier.ready("well")
    notifier.alive()
