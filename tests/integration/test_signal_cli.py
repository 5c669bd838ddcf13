"""`agentlink signal` and `agentlink waiting` as a person uses them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlink.broker import server
from tests.integration import waiting_steps
from tests.integration.own_home import OwnHome, own_home
from tests.waiting import wait_until
from workflows import signals

CALL = "from tests.integration import waiting_steps\nprint(waiting_steps.{call}.id)"


@pytest.fixture(scope="module")
def module_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnHome]:
    with own_home(tmp_path_factory.mktemp("signal")) as home:
        server.ensure_running(home.settings)
        home.start_worker(imports=waiting_steps.IMPORTS)
        yield home
        home.workers[0].stop()


@pytest.fixture
def home(module_home: OwnHome) -> Iterator[OwnHome]:
    """A home with a worker, in which nothing waits."""
    yield module_home
    module_home.client.flushall()


def start_run(home: OwnHome, call: str, waits: int = 1) -> str:
    """A run, some steps of which wait; its id."""
    called = home.python(CALL.format(call=call))
    assert called.returncode == 0, called.stderr
    wait_until(lambda: len(signals.all_waits(home.client)) == waits, what="steps that wait", timeout_s=20)
    return called.stdout.strip()


def test_what_waits_is_listed_and_goes_on_when_it_is_signalled(home: OwnHome, path: Path) -> None:
    assert home.agentlink("waiting").stdout == "nothing waits\n"
    run_id = start_run(home, f"asks.delay({str(path)!r}, '[red]word[/]')")
    page = home.agentlink("waiting").stdout.splitlines()
    assert page[0].split() == ["run", "waits", "for", "since", "time", "left", "question"]
    assert page[1].split()[:2] == [run_id, "[red]word[/]"]
    assert page[1].rstrip().endswith("-          Send this mail?")
    [wait] = json.loads(home.agentlink("waiting", "--json").stdout)
    assert (wait["run_id"], wait["name"], wait["prompt"], wait["until"]) == (
        run_id, "[red]word[/]", "Send this mail?", None,
    )  # fmt: skip
    sent = home.agentlink("signal", run_id, "[red]word[/]", '{"ok": true}')
    assert (sent.returncode, sent.stdout) == (0, "a step goes on\n"), sent.stderr
    wait_until(lambda: path.read_text() == "{'ok': True}\n", what="the next step")
    assert home.agentlink("waiting").stdout == "nothing waits\n"


def test_one_that_nobody_waits_for_yet_is_kept(home: OwnHome) -> None:
    run_id = start_run(home, "asks.delay()")
    sent = home.agentlink("signal", run_id, "later")
    assert sent.stdout == f"kept: nothing in run {run_id} waits for 'later' yet; it waits for 'approval'\n"
    assert home.client.lrange(signals.signals_key(run_id), 0, -1) == ["later\0null"]


def test_one_for_all_says_how_many_go_on(home: OwnHome) -> None:
    run_id = start_run(home, "asks_twice_at_once.delay()", 2)
    assert home.agentlink("signal", "--to-all", run_id[:8], "word", '"x"').stdout == "2 steps go on\n"


def test_a_timer_shows_how_much_time_is_left(home: OwnHome) -> None:
    start_run(home, "sleeps.delay('2h')")
    [_, line] = home.agentlink("waiting").stdout.splitlines()
    assert "its time" in line
    assert "1 h 59 m" in line or "2 h 00 m" in line


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["nothing", "go"], 1, "agentlink: no run 'nothing' is known: it never was, or it ended longer ago"),
        (["nothing", "go", "yes"], 2, "want JSON, like 'true' or '\"yes\"', got 'yes'"),
        (["nothing"], 2, "Missing argument 'NAME'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(home: OwnHome, words: list[str], status: int, says: str) -> None:
    refused = home.agentlink("signal", *words)
    assert (refused.returncode, refused.stdout) == (status, "")
    assert says in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_name_that_no_signal_can_have_is_refused(home: OwnHome) -> None:
    refused = home.agentlink("signal", start_run(home, "asks.delay()"), "")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "want a name of 1 to 100 printable characters, got ''" in refused.stderr


def test_without_a_broker_nothing_is_started(tmp_path: Path) -> None:
    with own_home(tmp_path) as home:
        for words in (["waiting"], ["signal", "run", "go"]):
            refused = home.agentlink(*words)
            assert (refused.returncode, refused.stdout) == (1, "")
            assert refused.stderr.endswith("can't be asked: it is not running; `agentlink up` starts it\n")
        assert home.processes() == []
