"""SIGQUIT ends a worker in the midst of whatever it does, and loses nothing."""

from __future__ import annotations

import pytest

from tests.integration import sample
from tests.integration.system import System


def test_a_worker_ends_that_has_written_half_a_job(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that has the one half waits for the other; the task runs elsewhere."""
    now = system.folder / "now"
    monkeypatch.setenv("TEST_QUIT_NOW", str(now))
    worker = system.start_worker(imports="tests.integration.sample,tests.integration.quitting")
    assert sample.add.delay(1, 1).get(timeout=10) == 2
    now.touch()
    result = sample.add.delay(2, 2)
    worker.process.wait(timeout=20)
    assert not now.exists()
    system.start_worker()
    assert result.get(timeout=10) == 4
