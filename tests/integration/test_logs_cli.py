"""`agentlink logs` and what `agentlink run` shows of a step's own words, as a person sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.own_home import OwnHome, own_home
from workflows import store

IMPORTS = "tests.integration.sample,tests.integration.talking"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnHome]:
    """A home on which AgentLink is up."""
    with own_home(tmp_path_factory.mktemp("logs")) as home:
        home.up(imports=IMPORTS)
        yield home


def _run_speaking(home: OwnHome, folder: Path) -> tuple[str, str]:
    """A run that has ended: its id, and what `agentlink run` printed."""
    for name in ("one", "two", "end"):
        (folder / name).touch()
    ran = home.agentlink("run", "speaking", str(folder), '["one", "two"]', imports=IMPORTS)
    assert ran.returncode == 0, ran.stderr
    return store.latest_runs(home.client, 1)[0].id, ran.stdout


def test_a_run_that_has_ended(home: OwnHome, tmp_path: Path) -> None:
    run_id, shown = _run_speaking(home, tmp_path)
    assert "100 %" in shown
    assert "said two" in shown
    for options in ((), ("--follow",)):
        printed = home.agentlink("logs", run_id[:8], *options)
        assert (printed.returncode, printed.stderr) == (0, "")
        one, said_one, two, said_two = printed.stdout.splitlines()
        assert (one, two) == ("one", "two")
        assert said_one.endswith(" speak: said one")
        assert said_two.endswith(" speak: said two")
    lines = [json.loads(line) for line in home.agentlink("logs", run_id, "--json").stdout.splitlines()]
    assert [(line["kind"], line["data"]) for line in lines][:2] == [("emit", "one"), ("log", "said one")]


def test_it_follows_a_run_to_its_end(home: OwnHome, tmp_path: Path) -> None:
    run = home.start_agentlink("run", "speaking", str(tmp_path), '["one", "two"]', imports=IMPORTS)
    run.wait_for("speaking run ")
    follower = home.start_agentlink("logs", store.latest_runs(home.client, 1)[0].id, "--follow")
    (tmp_path / "one").touch()
    follower.wait_for("speak: said one")
    assert "two" not in follower.output
    (tmp_path / "two").touch()
    follower.wait_for("speak: said two")
    assert follower.process.poll() is None
    (tmp_path / "end").touch()
    assert follower.wait() == run.wait() == 0


def test_a_run_nobody_knows_is_one_sentence(home: OwnHome) -> None:
    for options in ((), ("--follow",)):
        refused = home.agentlink("logs", "nothing", *options)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith("agentlink: no run 'nothing' is known")
