"""The `agentlink` command as a person sees it: what it prints, its exit status, and what it leaves running."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from agentlink import status, up
from agentlink.broker import server
from tests.integration.own_home import Command, OwnHome, own_home
from tests.integration.system import REPOSITORY
from tests.waiting import wait_until
from workflows import RunState, store

MY_MODULE = """
from tasks import task
from workflows import workflow

@task
def greet(name):
    return f"hello {name}"

@workflow
def greeting(name):
    return greet.s(name)
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[OwnHome]:
    """A home on which nothing runs."""
    with own_home(tmp_path) as home:
        yield home


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnHome]:
    """A home on which AgentLink is up, for all tests that leave it so."""
    with own_home(tmp_path_factory.mktemp("running"), "é % home") as home:
        home.up()
        yield home


def _start_waiting_run(home: OwnHome, name: str = "run") -> tuple[Command, Path]:
    """`agentlink run` whose first step is running, and the file that ends that step."""
    go, started = home.folder / f"{name}-go", home.folder / f"{name}-started"
    command = home.start_agentlink("run", "waits", str(go), str(started))
    wait_until(lambda: started.exists() or command.process.poll() is not None, what="the run's first step")
    assert started.exists(), command.output
    return command, go


def _in_a_shell(home: OwnHome, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("agentlink")
    return subprocess.run(
        ["sh", "-c", script.replace("agentlink", str(command))], cwd=home.folder, env=home.environment() | variables,
        text=True, capture_output=True, timeout=40, check=False,
    )  # fmt: skip


def _state_of_latest_run(home: OwnHome) -> RunState:
    return store.latest_runs(home.client, 1)[0].state


# -- run


def test_run_prints_the_answer(running: OwnHome) -> None:
    run = running.agentlink("run", "sums", "3")
    assert run.returncode == 0, run.stderr
    assert "1006" in run.stdout
    assert "SUCCEEDED in " in run.stdout
    assert run.stderr == ""


def test_run_as_json_prints_the_answer_and_nothing_else(running: OwnHome) -> None:
    run = running.agentlink("run", "parallel", "3", "--json")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [0, 2, 4]
    assert "SUCCEEDED" not in run.stdout


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("one_fails", "[b]roken"), "FAILED: tests.integration.sample.fail: ValueError: [b]roken"),
        (("unbuildable", "no plan"), "FAILED: tests.integration.sample.unbuildable: ValueError: no plan"),
    ],
)
def test_a_run_that_fails_prints_its_state_step_and_error(running: OwnHome, words: tuple[str, ...], what: str) -> None:
    run = running.agentlink("run", *words)
    assert run.returncode == 1
    assert what in run.stdout.splitlines()
    assert "Traceback" not in run.stdout + run.stderr
    assert "fail: 1 of 1 done" not in run.stdout


def test_a_workflow_that_the_workers_do_not_know_is_told_with_what_to_do(running: OwnHome) -> None:
    """They were started without the module."""
    (running.folder / "later_module.py").write_text(MY_MODULE)
    run = running.agentlink("run", "greeting", "you", imports="later_module")
    assert run.returncode == 1
    assert (
        "FAILED: later_module.greeting: NotRegistered: 'later_module.greeting' is not known to the worker; "
        "AGENTLINK_IMPORTS, where that is started, names the modules with your own"
    ) in run.stdout.splitlines()


def test_run_stops_nothing_that_was_up_before(running: OwnHome) -> None:
    assert running.agentlink("run", "immediate", "1").returncode == 0
    state = up.read_state(running.settings)
    assert state
    assert state["state"] == "up"
    assert server.is_running(running.settings)


def test_ctrl_c_on_a_run_leaves_it_to_agentlink_that_is_up(running: OwnHome) -> None:
    command, go = _start_waiting_run(running, "interrupted")
    command.signal(signal.SIGINT)
    assert command.wait() == 130
    assert "goes on; `agentlink status` shows how far it is." in command.output
    assert "Traceback" not in command.output
    go.touch()
    wait_until(lambda: _state_of_latest_run(running) is RunState.SUCCEEDED, what="the run's end")


def test_a_run_survives_the_end_of_the_broker(running: OwnHome) -> None:
    """`run` waits for the broker to come back, as the worker does."""
    command, go = _start_waiting_run(running, "survivor")
    os.kill(running.broker_pid(), signal.SIGKILL)
    command.wait_for("the broker does not answer; waiting for it")
    wait_until(lambda: server.is_running(running.settings), what="the broker's return")
    go.touch()
    assert command.wait() == 0, command.output


def test_a_run_alone_starts_what_it_needs_and_stops_it(home: OwnHome) -> None:
    run = home.agentlink("run", "sums", "2")
    assert run.returncode == 0, run.stderr
    assert "1003" in run.stdout
    assert run.stdout.splitlines()[-1] == "Stopped what was started for this run; `agentlink up` keeps it running."
    assert home.processes() == []


def test_run_keep_leaves_everything_running_until_down(home: OwnHome) -> None:
    run = home.agentlink("run", "immediate", "21", "--keep")
    assert run.returncode == 0, run.stderr
    state = up.read_state(home.settings)
    assert state
    assert psutil.pid_exists(state["pid"])
    assert home.agentlink("down").stdout == "stopped: worker and Flower, broker\n"
    assert home.processes() == []
    assert home.agentlink("down").stdout == "nothing was running\n"


def test_runs_at_the_same_time_share_what_the_first_starts_and_the_last_stops(home: OwnHome) -> None:
    """Both find nothing running; the first that ends stops nothing under the other."""
    go, started = home.folder / "go", home.folder / "started"
    long = home.start_agentlink("run", "waits", str(go), str(started))
    short = home.start_agentlink("run", "sums", "2")
    assert short.wait() == 0, short.output
    assert "Stopped what was started" not in short.output
    wait_until(started.exists, what="the long run's first step")
    assert len(home.processes("agentlink up")) == 1
    go.touch()
    assert long.wait() == 0, long.output
    assert "Stopped what was started" in long.output
    assert home.processes() == []


def test_ctrl_c_on_a_run_alone_stops_what_it_started_and_the_run_goes_on_later(home: OwnHome) -> None:
    """The first lets the running step end; the second gives it back to its queue."""
    command, go = _start_waiting_run(home)
    command.signal(signal.SIGINT)
    wait_until(lambda: "Warm shutdown" in up.log_path(home.settings).read_text(), what="the drain")
    command.signal(signal.SIGINT)
    assert command.wait() == 130
    assert command.output.splitlines()[-1].endswith(
        "goes on when AgentLink is up again: `agentlink up`; `agentlink status` shows how far it is."
    )
    assert "Traceback" not in command.output
    assert home.processes() == []
    go.touch()
    home.up(flower="off")
    wait_until(lambda: _state_of_latest_run(home) is RunState.SUCCEEDED, what="the run's end")


def test_a_workflow_of_ones_own_in_the_current_folder_is_found(home: OwnHome) -> None:
    (home.folder / "my_module.py").write_text(MY_MODULE)
    run = home.agentlink("run", "greeting", "you", "--json", "--keep", imports="my_module")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == "hello you"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("run", "nothing"), "agentlink: no workflow is called 'nothing'; known are "),
        (("run", "sums"), "agentlink: tests.integration.sample.sums: missing a required argument: 'count'; "),
        (("run", "sums", "many"), "agentlink: tests.integration.sample.sums: count: input should be a valid integer"),
        (("run", "research", "nowhere", "why?"), "agentlink: there is no file or folder '{folder}/nowhere'"),
        (("run", "research", "."), "missing a required argument: 'question'; it takes PATHS QUESTION [--top 8]"),
    ],
)
def test_a_call_that_makes_no_sense_is_one_line_and_starts_nothing(
    home: OwnHome, words: tuple[str, ...], problem: str
) -> None:
    refused = home.agentlink(*words)
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert problem.format(folder=home.folder) in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert home.processes() == []


def test_a_module_that_cannot_be_imported_is_one_line_that_names_it(home: OwnHome) -> None:
    (home.folder / "half_done.py").write_text("def f(:\n")
    for module, problem in (("half_done", "SyntaxError"), ("missing", "No module named 'missing'")):
        refused = home.agentlink("run", "sums", "1", imports=module)
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"agentlink: {module} (named in AGENTLINK_IMPORTS) can't be imported: ")
        assert problem in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert home.processes() == []


@pytest.mark.parametrize("name", ["tasks.py", "workflows/__init__.py", "agentlink/__init__.py"])
def test_a_module_that_hides_one_of_ours_is_named(home: OwnHome, name: str) -> None:
    """Python would find it first, here or in a worker that is started here."""
    (home.folder / name).parent.mkdir(exist_ok=True)
    (home.folder / name).touch()
    refused = home.agentlink("run", "sums", "1")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"agentlink: {home.folder / name} has the name of a package of AgentLink's own")
    assert refused.stderr.count("\n") == 1


def test_a_current_folder_that_is_gone_is_said(home: OwnHome) -> None:
    done = _in_a_shell(home, "mkdir gone; cd gone; rmdir ../gone; agentlink runs")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("agentlink: the current folder is gone: ")
    assert done.stderr.count("\n") == 1


# -- status


def test_status_tells_what_runs(running: OwnHome) -> None:
    running.agentlink("run", "sums", "2")
    # A run has its answer milliseconds before its last message is acknowledged.
    wait_until(lambda: running.status()["in_flight"] == 0, what="the last acknowledgement")
    facts = running.status()
    assert facts["up"]["state"] == "up"
    assert facts["broker"]["pid"] == running.broker_pid()
    (worker,) = facts["workers"]
    assert worker["queues"] == ["cpu"]
    assert worker["guard"] is None or worker["guard"]["state"] == "ok"
    assert facts["queues"][0] == {"name": "cpu", "waiting": 0, "delayed": 0, "limited": 0}
    assert (facts["in_flight"], facts["dead_letters"]) == (0, 0)
    assert facts["runs"][0]["workflow"] == "tests.integration.sample.sums"
    assert facts["runs"][0]["state"] == "SUCCEEDED"
    page = running.agentlink("status").stdout
    for part in (worker["name"], f"Flower: {facts['up']['flower']}", facts["runs"][0]["id"], "SUCCEEDED"):
        assert part in page


def test_status_on_a_narrow_terminal_keeps_ids_and_states_whole() -> None:
    run = {
        "id": "8d7e36aa-0000-4b52-87eb-33add5271ebc", "workflow": "workflows.research.research", "state": "SUCCEEDED",
        "steps_done": 3, "steps_total": 3, "took_s": 61.0, "error": None, "arguments": "'a long argument'" * 5,
    }  # fmt: skip
    broker = {"version": "valkey 9", "pid": 1, "memory_bytes": 1_500_000, "memory_limit_bytes": 10**9, "up_s": 3700}
    page = io.StringIO()
    facts = {"home": "/h", "up": None, "broker": broker | {"running": True}, "workers": [], "queues": [], "runs": [run]}
    facts |= {"limits": [], "in_flight": 2, "dead_letters": 1, "schedules": []}
    status.show(facts, Console(file=page, width=80))
    assert f"{run['id']}  research  SUCCEEDED  3/3    1 m 01 s" in page.getvalue()
    assert "valkey 9, pid 1, 1.5 MB of 1 GB, up 1 h 01 m" in page.getvalue()


def test_status_of_a_home_that_does_not_exist_is_nothing_and_makes_nothing(home: OwnHome) -> None:
    facts = home.status()
    assert (facts["up"], facts["broker"]["running"], facts["workers"], facts["runs"]) == (None, False, [], [])
    page = home.agentlink("status")
    assert page.returncode == 0
    assert "broker    not running: the first call starts it" in page.stdout
    assert not home.settings.home.exists()


def test_status_says_soon_that_the_broker_is_stuck(running: OwnHome) -> None:
    with running.frozen_broker():
        begun = time.monotonic()
        facts = running.status()
        assert time.monotonic() - begun < 5
    assert f"pid {running.broker_pid()} does not answer" in facts["broker"]["why"]


# -- output


def test_what_an_output_can_not_hold_is_escaped(running: OwnHome) -> None:
    for script in ("agentlink run one_fails \u00fcber", "agentlink runs --count 1"):
        done = _in_a_shell(running, script, PYTHONIOENCODING="ascii")
        assert done.stderr == ""
        assert "ValueError: \\xfcber" in done.stdout


def test_a_locale_of_ascii_alone_will_do(home: OwnHome) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = _in_a_shell(home, "agentlink run immediate 21 --json", **plain)
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr


@pytest.mark.parametrize(
    ("output", "status", "error"),
    [("/dev/full", 1, "agentlink: system: No space left on device\n"), ("&-", 0, "")],
)
def test_an_output_that_can_not_be_written_is_no_traceback(
    running: OwnHome, output: str, status: int, error: str
) -> None:
    done = _in_a_shell(running, f"agentlink runs >{output}")
    assert (done.returncode, done.stderr) == (status, error)


# -- doctor, and settings that make no sense


def test_doctor_finds_nothing_wrong_with_a_new_home_and_leaves_nothing_behind(home: OwnHome) -> None:
    healthy = home.agentlink("doctor")
    assert healthy.returncode == 0, healthy.stdout
    assert "!!" not in healthy.stdout
    assert "the broker starts and stops" in healthy.stdout
    assert not home.settings.home.exists()
    assert home.processes() == []


def test_doctor_says_in_words_what_is_wrong(home: OwnHome) -> None:
    file = home.folder / "file"
    file.touch()
    ill = home.agentlink("doctor", home=str(file / "home"), imports="missing")
    assert ill.returncode == 1
    assert f"!!  the broker can't start: {file}/home can't be made or written" in ill.stdout
    assert "!!  missing (named in AGENTLINK_IMPORTS) can't be imported" in ill.stdout
    assert "Traceback" not in ill.stdout + ill.stderr
    assert ill.stderr == ""


@pytest.mark.parametrize(
    "command",
    [("agentlink", "status"), ("agentlink", "up"), ("celery", "-A", "tasks", "inspect", "ping")],
    ids=lambda words: " ".join(words[:2]),
)
def test_settings_that_make_no_sense_are_all_listed_without_a_traceback(
    home: OwnHome, command: tuple[str, ...]
) -> None:
    refused = subprocess.run(
        [str(Path(sys.executable).with_name(command[0])), *command[1:]], cwd=REPOSITORY, text=True,
        env=home.environment(memory="lots", flower_prot="1"), capture_output=True, timeout=20, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert refused.stderr == (
        "agentlink: the settings can't be used:\n"
        "  AGENTLINK_FLOWER_PROT: is not a setting; did you mean AGENTLINK_FLOWER_PORT?\n"
        "  AGENTLINK_MEMORY: want a size like 8GB or 512MiB, got 'lots'\n"
    )


def test_a_home_that_cannot_be_made_is_one_line_for_every_command(home: OwnHome) -> None:
    (home.folder / "file").touch()
    impossible = str(home.folder / "file" / "home")
    for words, expected in ((("up",), 1), (("up", "--detach"), 1), (("run", "sums", "1"), 1), (("down",), 0)):
        refused = home.agentlink(*words, home=impossible)
        assert refused.returncode == expected
        assert (refused.stdout + refused.stderr).count("\n") == 1
