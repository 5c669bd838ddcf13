"""A chord is completed though the broker goes away at the worst moment: its members are counted, and not yet read."""

from __future__ import annotations

import pytest
from celery import chord, group

from agentlink.broker import server
from tests.integration import sample
from tests.integration.system import System
from tests.waiting import wait_until
from workflows import RunState


@pytest.fixture
def killed_at_join(system: System, monkeypatch: pytest.MonkeyPatch) -> System:
    """A worker that kills the broker there, once the test has called `kill_at_next_join`."""
    monkeypatch.setenv("TEST_JOIN_NOW", str(system.folder / "now"))
    system.start_worker(imports="tests.integration.sample,tests.integration.joining")
    assert sample.add.delay(1, 1).get(timeout=20) == 2
    return system


def kill_at_next_join(system: System) -> None:
    (system.folder / "now").write_text(str(system.broker_pid()))


def broker_comes_back(system: System) -> None:
    wait_until(lambda: not (system.folder / "now").exists(), what="the broker's end", timeout_s=20)
    server.ensure_running(system.settings)


def test_a_run_goes_on(killed_at_join: System) -> None:
    kill_at_next_join(killed_at_join)
    run = sample.sums.delay(3)
    broker_comes_back(killed_at_join)
    run.get(timeout=40)
    assert run.progress.state is RunState.SUCCEEDED


def test_a_plain_chord_goes_on(killed_at_join: System) -> None:
    kill_at_next_join(killed_at_join)
    result = chord(group(sample.add.s(number, 1) for number in range(3)), sample.total.s()).apply_async()
    broker_comes_back(killed_at_join)
    assert result.get(timeout=40) == 6
