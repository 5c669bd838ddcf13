"""`agentlink dead` as a person sees it. What buries a letter is in test_dead_letters.py; here it is done by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from agentlink.broker import dead_letters, server
from tests.integration.own_home import OwnHome, own_home

CALL = "from tests.integration import sample\nsample.{task}.apply_async(({text!r}, 1), task_id={letter_id!r})"


@pytest.fixture(scope="module")
def module_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnHome]:
    with own_home(tmp_path_factory.mktemp("dead")) as home:
        server.ensure_running(home.settings)
        yield home


@pytest.fixture
def home(module_home: OwnHome) -> Iterator[OwnHome]:
    """A home whose broker runs, with three dead letters."""
    for letter_id, task, text in (
        ("aaaa1111-one", "add", "first"), ("aaaa2222-two", "add", "second"), ("bbbb3333-three", "append_line", "third"),
    ):  # fmt: skip
        _bury(module_home, letter_id, task, text)
    yield module_home
    module_home.client.flushall()


def _bury(home: OwnHome, letter_id: str, task: str, text: str) -> None:
    called = home.python(CALL.format(letter_id=letter_id, task=task, text=text))
    assert called.returncode == 0, called.stderr
    message = home.client.rpop("cpu")
    home.client.hset("agentlink:inflight:w", "1", f"cpu\0{message}")
    taken = SimpleNamespace(delivery_tag="w/1", headers=json.loads(message)["headers"])
    assert dead_letters.bury(home.client, taken, reason=f"[red]it[/] died of {text}\nexit 9", attempts=3)


def test_the_list_shows_the_newest_first_with_ids_as_short_as_can_be(home: OwnHome) -> None:
    page = home.agentlink("dead").stdout.splitlines()
    assert page[0].split() == ["id", "task", "queue", "attempts", "when", "why"]
    assert [line.split()[:4] for line in page[1:]] == [
        ["bbbb3333", "append_line", "cpu", "3"], ["aaaa2222", "add", "cpu", "3"], ["aaaa1111", "add", "cpu", "3"],
    ]  # fmt: skip
    assert page[1].rstrip().endswith("[red]it[/] died of third exit 9")


def test_the_list_can_be_narrowed_and_read_by_programs(home: OwnHome) -> None:
    letters = json.loads(home.agentlink("dead", "--task", "add", "--text", "SECOND", "--json").stdout)
    assert [letter["id"] for letter in letters] == ["aaaa2222-two"]
    assert letters[0]["task"] == "tests.integration.sample.add"
    assert home.agentlink("dead", "--task", "none").stdout == "no dead letters\n"


def test_one_letter_is_shown_whole(home: OwnHome) -> None:
    page = home.agentlink("dead", "show", "bbbb").stdout
    for part in ("bbbb3333-three", "[red]it[/] died of third\nexit 9", 'arguments [["third", 1], {}]', '"lang": "py"'):
        assert part in page
    facts = json.loads(home.agentlink("dead", "show", "bbbb", "--json").stdout)
    assert (facts["attempts"], facts["message"]["body"][0]) == (3, ["third", 1])


def test_letters_are_sent_again_by_id_or_by_filter(home: OwnHome) -> None:
    assert home.agentlink("dead", "send", "bbbb", "bbbb3333-three").stdout == "sent again: 1\n"
    assert home.client.llen("cpu") == 1
    assert home.agentlink("dead", "send", "--all", "--text", "first").stdout == "sent again: 1\n"
    assert home.agentlink("dead", "send", "--all").stdout == "sent again: 1\n"
    assert home.agentlink("dead", "send", "--all").stdout == "sent again: 0\n"
    assert home.client.llen("cpu") == 3


def test_letters_are_dropped_by_id_or_by_filter(home: OwnHome) -> None:
    assert home.agentlink("dead", "drop", "aaaa1", "bbbb").stdout == "dropped: 2\n"
    assert home.agentlink("dead", "drop", "--all", "--task", "append_line").stdout == "dropped: 0\n"
    assert home.agentlink("dead", "drop", "--all", "--task", "add").stdout == "dropped: 1\n"
    assert dead_letters.count(home.client) == 0
    assert home.client.llen("cpu") == 0


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["show", "cccc"], 1, "agentlink: no dead letter's id is or begins with 'cccc'; `agentlink dead` lists them\n"),
        (["send", "bbbb", "aaaa"], 1, "agentlink: 2 dead letters' ids begin with 'aaaa' (aaaa2222-two, aaaa1111-one)"),
        (["drop", "bbbb", "cccc"], 1, "agentlink: no dead letter's id is or begins with 'cccc'"),
        (["send"], 2, "want either ids or --all"),
        (["drop", "bbbb", "--all"], 2, "want either ids or --all"),
        (["drop", "bbbb", "--task", "add"], 2, "--task and --text go with --all"),
        (["--task", "add", "drop", "--all"], 2, "options of `drop` come after it"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line_and_changes_nothing(
    home: OwnHome, words: list[str], status: int, says: str
) -> None:
    refused = home.agentlink("dead", *words)
    assert (refused.returncode, refused.stdout) == (status, "")
    assert says in refused.stderr
    assert "Traceback" not in refused.stderr
    assert dead_letters.count(home.client) == 3


def test_without_a_broker_nothing_is_started(tmp_path: Path) -> None:
    with own_home(tmp_path) as home:
        for words in ([], ["send", "--all"], ["drop", "x"]):
            refused = home.agentlink("dead", *words)
            assert (refused.returncode, refused.stdout) == (1, "")
            assert refused.stderr.endswith("can't be asked: it is not running; `agentlink up` starts it\n")
        assert home.processes() == []
        assert not home.settings.home.exists()
        own = home.agentlink("dead", broker_url=f"redis+socket://{tmp_path}/none?virtual_host=0")
        assert own.returncode == 1
        assert own.stderr.startswith(f"agentlink: the broker at redis+socket://{tmp_path}/none")
        assert "can't be asked:" in own.stderr


def test_a_broker_that_hangs_is_named(home: OwnHome) -> None:
    with home.frozen_broker():
        refused = home.agentlink("dead")
    assert refused.returncode == 1
    assert "does not answer; its log is" in refused.stderr
