"""`agentlink guard` as a person uses it on a running system. What the guard does by itself is in test_guard.py."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentlink.broker import guard_watch, profiles, server
from resource_guard.caps import Used
from resource_guard.steering import Orders
from tests.integration.own_home import OwnHome, own_home
from tests.waiting import wait_until

#: Soft so low that the least limit there is pauses any worker.
LIMITS = {"memory": "500MB", "memory_soft": "30%", "memory_resume": "25%", "memory_hard": "100%", "memory_free": "0"}
CALL = "from tests.integration import sample\nprint(sample.wait_for_file.delay({release!r}, started={started!r}).id)"


@pytest.fixture(scope="module")
def module_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnHome]:
    with own_home(tmp_path_factory.mktemp("guard")) as home:
        server.ensure_running(home.settings)
        yield home


@pytest.fixture
def home(module_home: OwnHome) -> Iterator[OwnHome]:
    """A home whose broker runs, without a worker, on which nobody has ordered anything."""
    yield module_home
    _stop_workers(module_home)
    module_home.client.flushall()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnHome]:
    """A home with a worker that runs one task."""
    with own_home(tmp_path_factory.mktemp("guarded")) as home:
        server.ensure_running(home.settings)
        home.start_worker(**LIMITS)
        release, started = home.folder / "release", home.folder / "started"
        called = home.python(CALL.format(release=str(release), started=str(started)))
        assert called.returncode == 0, called.stderr
        wait_until(started.exists, what="the running task")
        yield home
        release.touch()
        _stop_workers(home)


def _stop_workers(home: OwnHome) -> None:
    for worker in home.workers:
        worker.stop()
    home.workers.clear()


def _says(home: OwnHome, *words: str, **settings: str) -> list[str]:
    """The lines that `agentlink guard` prints."""
    said = home.agentlink("guard", *words, **settings)
    assert (said.returncode, said.stderr) == (0, "")
    return said.stdout.splitlines()


def _status(home: OwnHome) -> dict[str, Any]:
    guards: dict[str, Any] = json.loads("\n".join(_says(home, "status", "--json")))
    return guards


# -- status


def test_status_shows_what_is_watched_and_who_runs(running: OwnHome) -> None:
    page = _says(running, "status")
    assert page[0].rstrip() == "worker0@test  takes tasks"
    assert [line.split()[0] for line in page[2:4]] == ["memory", "memory_free"]
    assert "of 500 MB" in page[2]
    (task,) = [line.split() for line in page if line.startswith("wait_for_file ")]
    guard = _status(running)["worker0@test"]
    assert guard["tasks"]["started"][0]["id"].startswith(task[1])
    assert str(guard["tasks"]["started"][0]["pid"]) == task[2]
    assert "guessed" in task


def test_the_page_of_everything_shows_each_guard_in_short(running: OwnHome) -> None:
    lines = running.agentlink("status", **LIMITS).stdout.splitlines()
    guard = [line for line in lines if line.startswith("guard ")]
    assert guard[0] == "guard     takes tasks"
    assert "of 500 MB; cpu " in guard[1]


@contextlib.contextmanager
def _terminal(home: OwnHome, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
    """A command on a terminal of its own; and a function that reads what is on there so far."""
    ours, its = pty.openpty()
    environment = home.environment() | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen(
        home._command(words), cwd=home.folder, env=environment, stdin=its, stdout=its, stderr=its
    )
    os.close(its)
    os.set_blocking(ours, False)
    seen = bytearray()

    def read() -> str:
        with contextlib.suppress(OSError):  # nothing yet, or its end
            while part := os.read(ours, 65536):
                seen.extend(part)
        return seen.decode(errors="replace")

    try:
        yield process, read
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_watching_goes_on_without_workers_and_ends_with_the_terminal_as_it_was(home: OwnHome, signum: int) -> None:
    """Ctrl-C is the way to end it, and no error."""
    with _terminal(home, "guard", "status", "--watch") as (process, read):
        wait_until(lambda: "no worker answers" in read(), what="a first look", timeout_s=20)
        home.start_worker()
        wait_until(lambda: "worker0@test" in read(), what=f"the worker on {read()[-2000:]}", timeout_s=20)
        _stop_workers(home)
        looked = len(read())
        wait_until(lambda: "no worker answers" in read()[looked:], what="a look after its end", timeout_s=20)
        assert process.poll() is None
        process.send_signal(signum)
        wait_until(lambda: process.poll() is not None, what="its end")
        assert process.returncode == 0
        assert read().count("\x1b[?1049h") == 1
        assert read().endswith("\x1b[?25h\x1b[?1049l"), "cursor and screen are back, and no traceback follows"


# -- pause and resume


def test_a_pause_says_who_follows_and_how_long_and_a_second_one_takes_its_place(home: OwnHome) -> None:
    worker = home.start_worker()
    assert _says(home, "pause", "for  [red]lunch[/]", "🍜\n") == [
        "paused until `agentlink guard resume`: for [red]lunch[/] 🍜",
        "1 worker takes no new tasks, nor will those that start later; what runs goes on",
    ]
    assert "takes no new tasks: paused by hand: for [red]lunch[/] 🍜" in worker.log
    assert _says(home, "pause", "--for", "10m")[0].startswith("paused until ")
    (guard,) = _status(home).values()
    assert (guard["state"], guard["reason"]) == ("paused", "paused by hand")
    assert 500 < guard["ordered"]["until"] - time.time() <= 600
    assert _says(home, "resume") == ["resumed", "1 worker takes tasks"]
    assert _says(home, "resume") == ["nobody had paused the workers", "1 worker takes tasks"]


def test_a_pause_without_a_worker_is_kept_for_those_that_start(home: OwnHome) -> None:
    assert _says(home, "pause", "--for", "5m", "upgrade")[1:] == [
        "no worker answers; those that start will take no new tasks"
    ]
    home.start_worker(**LIMITS).wait_for_log("takes no new tasks: paused by hand: upgrade")
    assert _says(home, "limits", "set", "memory=100MB")[-1].startswith("worker0@test: pause: memory of this worker's")
    assert _says(home, "resume")[0] == "resumed"
    assert _says(home, "resume")[1].startswith("worker0@test stays paused by a limit: memory of this worker's")


def test_workers_that_do_not_follow_are_named(home: OwnHome) -> None:
    home.start_worker(guard="0")
    home.start_worker(guard_dry_run="1")
    assert _says(home, "pause")[1:] == [
        "worker0@test has no guard and goes on as before",
        "worker1@test is on a dry run: it says what it would do and goes on as before",
    ]
    assert _status(home)["worker0@test"] is None


# -- limits


def test_limits_are_changed_shown_and_put_back(home: OwnHome) -> None:
    home.start_worker(**LIMITS)
    changed = _says(home, "limits", "set", "memory=900TB", "cpu=50%", **LIMITS)
    assert changed[:2] == ["memory      500 MB → 900 TB", "cpu         60% → 50%"]
    assert "until `agentlink guard limits reset`" in changed[2]
    assert changed[3].startswith("worker0@test: memory 900 TB is more than there is; ")
    _says(home, "limits", "set", "processes=300")
    limits = {one["resource"]: one for one in json.loads("\n".join(_says(home, "limits", "--json", **LIMITS)))}
    cpu = limits["cpu"]
    assert (cpu["settings"], cpu["ordered"], cpu["held"]["worker0@test"]["limit"]) == (0.6, 0.5, 0.5)
    assert (limits["processes"]["ordered"], limits["memory_free"]["ordered"]) == (300, None)
    page = _says(home, "limits", **LIMITS)
    assert page[1].split()[:5] == ["memory", "500", "MB", "900", "TB"]
    assert _says(home, "limits", "reset", **LIMITS) == [
        "memory      900 TB → 500 MB", "cpu         50% → 60%", "processes   300 → 1,000",
    ]  # fmt: skip
    assert _says(home, "limits", "reset") == ["the limits are those of the settings already"]
    assert _status(home)["worker0@test"]["resources"]["memory"]["limit"] == 500_000_000


def test_limits_without_a_worker_are_kept_and_a_pause_stays(home: OwnHome) -> None:
    _says(home, "pause", "upgrade")
    assert _says(home, "limits", "set", "cpu=50%")[-1] == "no worker answers; those that start will hold these limits"
    orders = guard_watch.ordered(home.client)
    assert (orders.paused, orders.reason, orders.limits) == (True, "upgrade", {"cpu": 0.5})
    assert "by no worker" in _says(home, "limits")[1]


def test_two_people_who_order_at_once_both_have_their_way(home: OwnHome) -> None:
    """Whoever is second begins anew, from what the first has ordered."""
    seen: list[Orders] = []

    def second(orders: Orders) -> Orders:
        seen.append(orders)
        if len(seen) == 1:
            guard_watch.give(home.client, lambda orders: replace(orders, limits={"cpu": 0.5}))
        return replace(orders, paused=True)

    both = guard_watch.give(home.client, second)
    assert len(seen) == 2
    assert both == guard_watch.ordered(home.client) == Orders(paused=True, limits={"cpu": 0.5})


# -- profiles


def test_profiles_show_what_tasks_have_been_measured_to_take(home: OwnHome) -> None:
    assert _says(home, "profiles") == ["no task has been measured yet"]
    assert _says(home, "profiles", "--json") == ["[]"]
    used = [Used(peak_bytes=peak, cpu_s=1.5, wall_s=2.0) for peak in (40_000_000, 100_000_000)]
    profiles.record(home.client, {"mine.[b]large[/]": used})
    title, line = _says(home, "profiles")
    assert title.split() == ["task", "runs", "reserved", "peak", "cores", "time"]
    assert line.split() == ["mine.[b]large[/]", "2", "107", "MB", "100", "MB", "0.75", "2.0", "s"]
    (profile,) = json.loads("\n".join(_says(home, "profiles", "--json")))
    assert (profile["name"], profile["runs"], profile["peak_bytes"]) == ("mine.[b]large[/]", 2, 100_000_000)


# -- what makes no sense


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["status"], 1, "agentlink: no worker answers; `agentlink up` starts one\n"),
        (["status", "--json"], 1, "agentlink: no worker answers; `agentlink up` starts one\n"),
        (["status", "--watch"], 2, "--watch needs a terminal; without it one look is printed"),
        (["status", "--watch", "--json"], 2, "want either --watch or --json"),
        (["pause", "--for", "soon"], 2, "want a duration like 30s, 250ms, 5m, 2h or 7d, got 'soon'"),
        (["pause", "--for", "0s"], 2, "want a duration above 0, got '0s'"),
        (["limits", "set", "cpu=50%", "memory=6"], 1, "agentlink: memory: want 100MB to 1000TB, got '6'\n"),
        (["limits", "set", "memory"], 1, "agentlink: want RESOURCE=LIMIT, as memory=6GB, with one of memory, "),
        (["limits", "set"], 2, "Missing argument 'RESOURCE=LIMIT...'"),
        (["limits", "--json", "reset"], 2, "options of `reset` come after it"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(
    home: OwnHome, words: list[str], status: int, says: str
) -> None:
    refused = home.agentlink("guard", *words)
    assert (refused.returncode, refused.stdout) == (status, "")
    assert says in refused.stderr
    assert guard_watch.ordered(home.client) == Orders()


def test_without_a_broker_nothing_is_started(tmp_path: Path) -> None:
    with own_home(tmp_path) as home:
        for words in (["status"], ["pause"], ["resume"], ["limits"], ["limits", "set", "cpu=50%"], ["profiles"]):
            refused = home.agentlink("guard", *words)
            assert (refused.returncode, refused.stdout) == (1, "")
            assert refused.stderr.endswith("can't be asked: it is not running; `agentlink up` starts it\n")
        assert not home.settings.home.exists()
