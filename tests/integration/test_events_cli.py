"""`agentlink events` as a person sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from agentlink.broker import event_log, server
from tests.integration.own_home import OwnHome, own_home

CALL = """
from tests.integration import sample
sample.double.apply_async((4,), task_id="first")
sample.opens.apply_async(("s3cret", "me"), {"url": "https://me:s3cret@there/"}, task_id="second")
"""


@pytest.fixture(scope="module")
def module_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnHome]:
    with own_home(tmp_path_factory.mktemp("events")) as home:
        server.ensure_running(home.settings)
        yield home


@pytest.fixture
def home(module_home: OwnHome) -> Iterator[OwnHome]:
    """A home whose broker runs, and knows of two calls."""
    called = module_home.python(CALL)
    assert called.returncode == 0, called.stderr
    yield module_home
    module_home.client.flushall()


def test_what_has_happened_is_listed_oldest_first(home: OwnHome) -> None:
    event_log.tell(home.client, [("alert-firing", {"alert": "disk", "text": "it is full"})])
    lines = home.agentlink("events").stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["workflow-called", "workflow-called", "alert-firing"]
    assert lines[2].endswith('alert="disk" text="it is full"')
    (last,) = home.agentlink("events", "--json", "--count", "1", "--kind", "workflow").stdout.splitlines()
    assert {"kind": "workflow-called", "run_id": "second"}.items() <= json.loads(last).items()
    assert home.agentlink("events", "--kind", "step-failed").stdout == ""
    assert "step-failed" in home.agentlink("events", "--kind", "nothing").stderr


def test_secrets_are_in_no_event_and_no_list(home: OwnHome) -> None:
    """By the name of a parameter, and in an address."""
    told = home.agentlink("events").stdout
    assert "'***', 'me', url='https://me:***@there/'" in json.loads(told.splitlines()[1].partition("arguments=")[2])
    assert "s3cret" not in told + home.agentlink("runs").stdout + home.agentlink("show", "second", "--json").stdout


def test_what_happens_is_shown_as_it_does(home: OwnHome) -> None:
    events = home.start_agentlink("events", "--follow", "--count", "1", "--json")
    events.wait_for("second")  # the past is listed, and all that comes is shown
    event_log.tell(home.client, [("alert-resolved", {"alert": "disk"})])
    events.wait_for("alert-resolved")
    events.process.terminate()
    assert [json.loads(line)["kind"] for line in events.output.splitlines()] == ["workflow-called", "alert-resolved"]
    events.wait()


def test_how_much_is_told_is_shown_and_changed(home: OwnHome) -> None:
    assert home.agentlink("events", "level").stdout == "events: full\n"
    assert home.agentlink("events", "level", "basic").stdout == "events: basic\n"
    assert home.python(CALL.replace("first", "third").replace("second", "fourth")).returncode == 0
    assert "third" not in home.agentlink("events").stdout
    assert home.agentlink("events", "level", "default").stdout == "events: full\n"
    assert home.agentlink("events", "level", "much").returncode == 2
