"""`agentlink up`: everything up, whatever dies comes back, and every way to end it loses nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from agentlink import up
from agentlink.broker import server
from tests.integration.own_home import OwnHome, own_home
from tests.waiting import wait_until

ADD = "from tests.integration import sample; print(sample.add.delay(20, 22).get(timeout=20))"
SEND_WAITING_TASK = """
from tests.integration import sample
print(sample.wait_for_file.delay({go!r}, started={started!r}).id)
"""
RESULT = "from tests.integration import sample; print(sample.wait_for_file.AsyncResult({id!r}).get(timeout=20))"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[OwnHome]:
    with own_home(tmp_path) as home:
        yield home


def _python(home: OwnHome, code: str) -> str:
    answer = home.python(code)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def _start_waiting_task(home: OwnHome) -> tuple[str, Path]:
    """A task that is running; its id, and the file that ends it."""
    go, started = home.folder / "go", home.folder / "started"
    task_id = _python(home, SEND_WAITING_TASK.format(go=str(go), started=str(started)))
    wait_until(started.exists, what="the task's start")
    return task_id, go


def _wait_for_the_broker_alone(home: OwnHome) -> None:
    wait_until(
        lambda: [process.pid for process in home.processes()] == [server.holder(home.settings)],
        what="the end of all but the broker",
        timeout_s=20,
    )


def _flower_url(home: OwnHome) -> str:
    state = up.read_state(home.settings)
    assert state
    url: str = state["flower"]
    return url


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _listening(processes: list[psutil.Process]) -> set[tuple[str, int]]:
    connections = [connection for process in processes for connection in process.net_connections("inet")]
    return {tuple(one.laddr) for one in connections if one.status == psutil.CONN_LISTEN}


def test_up_is_a_broker_a_worker_and_flower_on_the_loopback_alone(home: OwnHome) -> None:
    command = home.up()
    url = _flower_url(home)
    assert f"AgentLink is up; Flower: {url}" in command.output
    assert _answers(url)
    assert _listening(home.processes()) == {("127.0.0.1", int(url.rsplit(":", 1)[1]))}
    assert "superuser" not in command.output
    assert "Traceback" not in command.output


def test_a_second_up_on_a_home_is_refused(home: OwnHome) -> None:
    first = home.up(flower="off")
    for options in ((), ("--detach",)):
        second = home.agentlink("up", *options)
        assert second.returncode == 1
        assert second.stderr == (
            f"agentlink: AgentLink is already up on {home.settings.home} (pid {first.process.pid}); "
            "`agentlink down` stops it\n"
        )


def test_one_started_in_the_background_too_late_does_not_wait_for_its_turn(
    home: OwnHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one has taken the lock meanwhile: ours would take it after that one's end, with nobody to stop it."""
    spawned, locks = [], []

    def spawn_late(_: object) -> subprocess.Popen[bytes]:
        locks.append(up.take_lock(home.settings))
        up.write_state(home.settings, {"pid": os.getpid(), "state": "up"})
        spawned.append(subprocess.Popen(["sleep", "60"]))
        return spawned[0]

    monkeypatch.setattr(up, "_spawn", spawn_late)
    state, started = up.start(home.settings, wait_for_worker=True)
    up.release_lock(home.settings, *locks)
    assert (state["pid"], started) == (os.getpid(), False)
    assert [process.returncode for process in spawned] == [-signal.SIGTERM]


def test_whatever_is_killed_comes_back_and_works(home: OwnHome) -> None:
    home.up()
    url = _flower_url(home)
    for name, part_of_command in (("worker", " worker "), ("Flower", " flower "), ("broker", "valkey-server")):
        killed = min(home.processes(part_of_command), key=lambda process: process.create_time())
        killed.kill()
        wait_until(
            lambda part=part_of_command, pid=killed.pid: pid not in {p.pid for p in home.processes(part)},
            what=f"the end of the {name}",
        )
        wait_until(lambda part=part_of_command: home.processes(part), what=f"another {name}", timeout_s=15)
        assert _python(home, ADD) == "42", name
    wait_until(lambda: _answers(url), what="Flower at its address", timeout_s=15)


def test_ctrl_c_lets_a_running_task_end_and_keeps_the_broker(home: OwnHome) -> None:
    command = home.up(flower="off")
    task_id, go = _start_waiting_task(home)
    command.signal(signal.SIGINT)
    command.wait_for("Warm shutdown")
    go.touch()
    assert command.wait() == 0
    _wait_for_the_broker_alone(home)
    assert _python(home, RESULT.format(id=task_id)) == "0"


def test_a_second_ctrl_c_gives_a_running_task_back_for_the_next_up(home: OwnHome) -> None:
    command = home.up(flower="off")
    task_id, go = _start_waiting_task(home)
    command.signal(signal.SIGINT)
    command.wait_for("Warm shutdown")
    command.signal(signal.SIGINT)
    assert command.wait() == 0
    _wait_for_the_broker_alone(home)
    assert home.client.llen("cpu") == 1
    go.touch()
    home.up(flower="off")
    assert _python(home, RESULT.format(id=task_id)) == "0"


def test_up_that_is_killed_leaves_the_broker_alone_and_gives_its_tasks_back(home: OwnHome) -> None:
    command = home.up()
    _start_waiting_task(home)
    command.process.kill()
    command.wait()
    _wait_for_the_broker_alone(home)
    assert home.client.llen("cpu") == 1
    # Its lock and not its files decide whether it is up: those of one that was killed don't count.
    assert up.read_state(home.settings) is None
    assert not up.stop(home.settings)


def test_detached_it_is_up_when_the_command_returns(home: OwnHome) -> None:
    detached = home.agentlink("up", "--detach")
    assert detached.returncode == 0, detached.stderr
    assert detached.stdout.startswith("AgentLink is up (pid ")
    assert _answers(_flower_url(home))
    (worker,) = home.status()["workers"]
    assert worker["queues"] == ["cpu"]


def test_flower_takes_another_port_when_its_own_is_taken_and_up_shows_it(home: OwnHome) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = home.up(flower_port=str(port))
    url = _flower_url(home)
    assert url != f"http://127.0.0.1:{port}"
    assert f"AgentLink is up; Flower: {url}" in command.output
    assert _answers(url)


def test_two_homes_that_find_the_same_port_free_at_the_same_time_have_a_flower_each(
    home: OwnHome, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free_in_a_moment:
        port = free_in_a_moment.getsockname()[1]
    with own_home(tmp_path, "other") as other:
        for each in (home, other):
            each.start_agentlink("up", flower_port=str(port))
        wait_until(lambda: all(up.read_state(each.settings) for each in (home, other)), what="both homes' states")
        wait_until(
            lambda: _flower_url(home) != _flower_url(other) and _answers(_flower_url(home)),
            what="an address for each Flower",
            timeout_s=20,
        )
        assert f"http://127.0.0.1:{port}" in (_flower_url(home), _flower_url(other))
        wait_until(lambda: _answers(_flower_url(other)), what="the other Flower", timeout_s=20)


def _has_begun(home: OwnHome, _: object) -> bool:
    return (home.settings.home / "up.lock").exists()


def _starts_broker(home: OwnHome, _: object) -> bool:
    return server.holder(home.settings) is not None


def _starts_worker(home: OwnHome, output: str) -> bool:
    return "worker started" in output


@pytest.mark.parametrize("moment", [_has_begun, _starts_broker, _starts_worker])
def test_ctrl_c_during_the_start_ends_it_without_a_traceback(
    home: OwnHome, moment: Callable[[OwnHome, str], bool]
) -> None:
    command = home.start_agentlink("up")
    wait_until(lambda: moment(home, command.output), what=moment.__name__)
    command.signal(signal.SIGINT)
    assert command.wait() in (0, 130)
    assert "Traceback" not in command.output
    assert home.processes(" worker ") == home.processes(" flower ") == []


def test_a_module_that_cannot_be_imported_ends_the_start_with_its_name_and_line(home: OwnHome) -> None:
    (home.folder / "broken_module.py").write_text("\nundefined_name\n")
    where = f"{home.folder}/broken_module.py, line 2"
    problem = "broken_module (named in AGENTLINK_IMPORTS) can't be imported: NameError: name 'undefined_name'"
    for options in ((), ("--detach",)):
        refused = home.agentlink("up", *options, imports="broken_module")
        assert refused.returncode == 1
        assert problem in refused.stderr
        assert where in refused.stderr
        assert "the worker could not start (exit status 1)" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert home.processes(" celery ") == []
