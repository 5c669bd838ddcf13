"""`agentlink schedule` as a person sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentlink.broker import server
from tests.integration import declaring, scheduled
from tests.integration.own_home import OwnHome, own_home
from tests.waiting import wait_until

NOTED = scheduled.noted.name
IMPORTS = f"{scheduled.IMPORTS},{declaring.IMPORTS}"


@pytest.fixture(scope="module")
def module_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnHome]:
    with own_home(tmp_path_factory.mktemp("schedule")) as home:
        server.ensure_running(home.settings)
        yield home


@pytest.fixture
def home(module_home: OwnHome) -> Iterator[OwnHome]:
    """A home whose broker runs."""
    yield module_home
    module_home.client.flushall()


def _do(home: OwnHome, *words: str, **options: Any) -> str:
    done = home.agentlink("schedule", *words, imports=IMPORTS, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _listed(home: OwnHome) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(_do(home, "list", "--json"))
    return listed


def test_one_is_added_listed_paused_resumed_and_removed(home: OwnHome) -> None:
    assert _do(home, "list") == "no schedules; `agentlink schedule add` makes one\n"
    said = _do(
        home, "add", "weekly", "noted", "p", "--text", "[red]x", "--cron", "0 7 * * MON", "--timezone", "Asia/Tokyo"
    )
    assert said.startswith("weekly: 0 7 * * MON Asia/Tokyo, next Mon ")
    assert said.endswith(" 07:00:00 JST\n")
    _do(home, "add", "often", NOTED, "p", "--every", "15m", "--missed", "once", "--paused")
    titles, often, weekly = _do(home, "list").splitlines()
    assert titles.split() == ["name", "workflow", "when", "next", "last", "run", "what"]
    assert often.split()[:6] == ["often", "noted", "every", "15", "m", "00"]
    assert "paused" in often
    assert "07:00:00 JST" in weekly
    assert _do(home, "resume", "often").startswith("often: next ")
    assert _do(home, "pause", "weekly") == "weekly: paused\n"
    facts = {one["name"]: one for one in _listed(home)}
    assert facts["weekly"]["args"] == ["p", "[red]x"]
    assert (facts["weekly"]["paused"], facts["weekly"]["next_at"]) == (True, None)
    assert (facts["often"]["paused"], facts["often"]["every_ms"], facts["often"]["missed"]) == (False, 900_000, "once")
    assert _do(home, "remove", "often") == "often: removed\n"
    assert [one["name"] for one in _listed(home)] == ["weekly"]


def test_whether_its_runs_may_overlap_is_shown(home: OwnHome) -> None:
    _do(home, "add", "alone", NOTED, "p", "--every", "15m")
    _do(home, "add", "patient", NOTED, "p", "--every", "15m", "--overlap", "wait")
    _do(home, "add", "many", NOTED, "p", "--every", "15m", "--overlap", "allow")
    assert {one["name"]: one["overlap"] for one in _listed(home)} == {
        "alone": "skip",
        "patient": "wait",
        "many": "allow",
    }
    home.client.hset("agentlink:schedule:alone", "skipped", 3)
    home.client.hset("agentlink:schedule:patient", "waits_ms", 1)
    _, alone, many, patient = (line.rstrip() for line in _do(home, "list").splitlines())
    assert alone.endswith("times skipped as its run goes on: 3")
    assert many.endswith("its runs may overlap")
    assert "when its run ends" in patient
    assert patient.endswith("its runs wait for each other")


def test_status_tells_when_they_come_and_what_became_of_their_last_runs(home: OwnHome) -> None:
    for name in ("second", "paused", "first"):
        _do(home, "add", name, NOTED, "p", "--every", "1h" if name == "first" else "2h")
    _do(home, "pause", "paused")
    home.client.hset("agentlink:schedule:first", mapping={"run_id": "gone", "fired_ms": 1, "skipped": 2})
    page = [line for line in home.agentlink("status").stdout.splitlines() if line.startswith("schedule")]
    assert [line.split()[1:3] for line in page] == [["first:", "next"], ["second:", "next"], ["paused:", "paused"]]
    assert page[0].endswith(", last run forgotten, 2 skipped since")
    facts = json.loads(home.agentlink("status", "--json").stdout)["schedules"]
    assert [(one["name"], one["paused"], one["run_state"]) for one in facts] == [
        ("first", False, None), ("second", False, None), ("paused", True, None),
    ]  # fmt: skip
    for number in range(5):
        _do(home, "add", f"more {number}", NOTED, "p", "--every", "1h")
    page = home.agentlink("status").stdout.splitlines()
    assert "schedule  3 more: `agentlink schedule list` shows them" in page


def test_it_is_changed_in_place(home: OwnHome) -> None:
    _do(home, "add", "one", NOTED, "p", "--every", "15m")
    refused = home.agentlink("schedule", "add", "one", NOTED, "p", "--every", "1h", imports=IMPORTS)
    assert refused.stderr == "agentlink: schedule one: there is one already; --replace gives it what was asked for\n"
    assert _do(home, "add", "one", NOTED, "p", "--every", "1h", "--replace").startswith("one: every 1 h 00 m, next ")


def test_the_next_times_are_shown_in_its_zone(home: OwnHome) -> None:
    _do(home, "add", "new-year", NOTED, "p", "--cron", "@yearly", "--timezone", "America/New_York")
    times = _do(home, "next", "new-year", "-n", "3").splitlines()
    assert [line.split("-", 1)[1] for line in times] == ["01-01 00:00:00 EST"] * 3
    assert len(json.loads(_do(home, "next", "new-year", "--json"))) == 5
    _do(home, "pause", "new-year")
    paused = home.agentlink("schedule", "next", "new-year", "-n", "3", imports=IMPORTS)
    assert paused.stdout.splitlines() == times
    assert "is paused" in paused.stderr


def test_a_workers_schedules_are_steered_while_it_runs(home: OwnHome, path: Path) -> None:
    """Paths are those of the folder in which the command was given."""
    _do(home, "add", "manual", NOTED, str(path), "by hand", "--every", "30d")
    home.start_worker(imports=IMPORTS)
    run_id = _do(home, "run-now", "manual").strip()
    wait_until(lambda: path.read_text() == "by hand\n", what="the run by hand", timeout_s=20)
    facts = {one["name"]: one for one in _listed(home)}
    assert facts["manual"]["run_id"] == run_id
    assert facts["manual"]["fired_at"] < facts["manual"]["next_at"]
    assert facts[declaring.each_monday.name]["declared"]
    _do(home, "add", "manual", NOTED, str(path), "by itself", "--every", "1s", "--replace")
    wait_until(lambda: "by itself" in path.read_text(), what="the changed schedule's run", timeout_s=20)
    refused = home.agentlink("schedule", "remove", declaring.each_monday.name, imports=IMPORTS)
    assert "code declares it: pause it, or take the declaration out of the code" in refused.stderr
    home.workers.pop().stop()


def test_arguments_are_completed_where_the_schedule_is_made(home: OwnHome, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("something to find")
    _do(home, "add", "search", "research", "notes.md", "what is there?", "--every", "1h", folder=tmp_path)
    assert _listed(home)[0]["args"] == [[str(tmp_path / "notes.md")], "what is there?"]


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["add", "x", NOTED, "p"], 1, "schedule x: want either a cron expression like '0 7 * * MON' or an interval"),
        (["add", "x", NOTED, "p", "--cron", "0 25 * * *"], 1, "schedule x: hour: want numbers from 0 to 23"),
        (["add", "x", NOTED, "--every", "1h"], 1, "missing a required argument: 'path'"),
        (["add", "x", "no_such", "--every", "1h"], 1, "no workflow is called 'no_such'"),
        (["add", " x", NOTED, "p", "--every", "1h"], 1, "want a name of 1 to 100 printable characters, got ' x'"),
        (["remove", "x"], 1, "agentlink: no schedule is called 'x'; known are: none\n"),
        (["pause", "x"], 1, "no schedule is called 'x'"),
        (["run-now", "x"], 1, "no schedule is called 'x'"),
        (["next", "x", "-n", "0"], 2, "0 is not in the range"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line_and_changes_nothing(
    home: OwnHome, words: list[str], status: int, says: str
) -> None:
    refused = home.agentlink("schedule", *words, imports=IMPORTS)
    assert (refused.returncode, refused.stdout) == (status, "")
    assert says in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not home.client.exists("agentlink:schedules")


def test_without_a_broker_nothing_is_started(tmp_path: Path) -> None:
    with own_home(tmp_path) as home:
        for words in (["list"], ["pause", "x"], ["next", "x"]):
            refused = home.agentlink("schedule", *words)
            assert (refused.returncode, refused.stdout) == (1, "")
            assert refused.stderr.endswith("can't be asked: it is not running; `agentlink up` starts it\n")
        assert home.processes() == []
