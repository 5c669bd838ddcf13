"""`agentlink runs`, `show`, `cancel` and `resume` as a person sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlink.broker import server
from tests.integration.own_home import OwnHome, own_home

CALL = "from tests.integration import sample\nsample.{name}.apply_async(({argument},), task_id={run_id!r}, tags={tags})"


@pytest.fixture(scope="module")
def module_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnHome]:
    with own_home(tmp_path_factory.mktemp("runs")) as home:
        server.ensure_running(home.settings)
        yield home


@pytest.fixture
def home(module_home: OwnHome) -> Iterator[OwnHome]:
    """A home whose broker runs, with three runs that wait for a worker."""
    calls = [
        CALL.format(name="sums", argument=3, run_id="aaaa1111-one", tags=["nightly"]),
        CALL.format(name="sums", argument=4, run_id="aaaa2222-two", tags=[]),
        CALL.format(name="parallel", argument=5, run_id="bbbb3333-three", tags=["nightly", "big"]),
    ]
    called = module_home.python("\n".join(calls))
    assert called.returncode == 0, called.stderr
    yield module_home
    module_home.client.flushall()


def _ids(home: OwnHome, *arguments: str) -> list[str]:
    return [run["id"] for run in json.loads(home.agentlink("runs", *arguments, "--json").stdout)]


def test_runs_are_listed_newest_first_and_narrowed(home: OwnHome) -> None:
    assert _ids(home) == ["bbbb3333-three", "aaaa2222-two", "aaaa1111-one"]
    assert _ids(home, "--workflow", "sums", "--tag", "nightly") == ["aaaa1111-one"]
    assert _ids(home, "--count", "1", "--skip", "1") == ["aaaa2222-two"]
    assert _ids(home, "--state", "running") == []
    page = home.agentlink("runs").stdout.splitlines()
    assert page[0].split() == ["run", "workflow", "state", "steps", "called", "took", "what"]
    assert page[1].split()[:4] == ["bbbb3333-three", "parallel", "QUEUED", "0/0"]
    assert page[-1] == "3 QUEUED"
    assert home.agentlink("runs", "--tag", "none").stdout == "no such runs\n"


def test_a_run_is_shown_by_what_its_id_begins_with(home: OwnHome) -> None:
    lines = dict(line.split(maxsplit=1) for line in home.agentlink("show", "bbbb").stdout.splitlines()[:7])
    assert lines["run"] == "bbbb3333-three"
    assert (lines["state"], lines["arguments"], lines["steps"]) == ("QUEUED", "5", "0 of 0 have ended")
    assert json.loads(home.agentlink("show", "bbbb3333-three", "--json").stdout)["tags"] == ["nightly", "big"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("show", "aaaa"), "2 runs' ids begin with 'aaaa'"),
        (("show", "cccc"), "no run 'cccc' is known"),
        (("cancel", "cccc"), "no run 'cccc' is known"),
        (("resume", "bbbb"), "run bbbb3333-three can't be resumed now: it is QUEUED"),
        (("resume",), "want either ids or --all"),
        (("resume", "bbbb", "--error", "x"), "--workflow and --error go with --all"),
        (("resume", "--all", "--from", "1"), "--from and --args go with ids"),
        (("resume", "bbbb", "--args", "{"), "--args: Expecting property name"),
        (("resume", "bbbb", "--args", "7"), "want a list or an object, got 7"),
        (("runs", "--state", "lost"), "'lost' is not one of"),
    ],
)
def test_what_makes_no_sense_is_one_clear_error(arguments: tuple[str, ...], error: str, home: OwnHome) -> None:
    refused = home.agentlink(*arguments)
    assert refused.returncode != 0
    assert error in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_run_is_cancelled_and_goes_on(home: OwnHome) -> None:
    assert home.agentlink("cancel", "bbbb", "aaaa1", "--reason", "too many").stdout.splitlines() == [
        "bbbb3333-three: cancelled", "aaaa1111-one: cancelled",
    ]  # fmt: skip
    assert "cancelled: too many" in home.agentlink("show", "bbbb").stdout
    assert home.agentlink("cancel", "bbbb").stdout == "bbbb3333-three: had ended already, CANCELLED\n"
    assert _ids(home, "--state", "cancelled") == ["bbbb3333-three", "aaaa1111-one"]
    assert home.agentlink("resume", "bbbb").stdout == "bbbb3333-three: goes on\n"
    assert _ids(home, "--state", "queued") == ["bbbb3333-three", "aaaa2222-two"]


def test_nothing_is_resumed_where_nothing_has_failed(home: OwnHome) -> None:
    nothing = home.agentlink("resume", "--all", "--error", "x")
    assert (nothing.returncode, nothing.stdout) == (0, "")


def test_without_a_broker_it_says_so(tmp_path: Path) -> None:
    with own_home(tmp_path) as home:
        refused = home.agentlink("runs")
        assert refused.returncode == 1
        assert "it is not running; `agentlink up` starts it" in refused.stderr
