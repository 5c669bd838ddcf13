"""SIGQUIT ends a worker in the midst of whatever it does, and loses nothing."""

from __future__ import annotations

import select

import pytest

from tests.integration import sample
from tests.integration.system import System


@pytest.mark.parametrize("moment", ["job", "answer"])
def test_a_worker_ends_in_the_middle(moment: str, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a job, whose process waits for the other half: the task runs elsewhere; of an answer, which counts."""
    now = system.folder / "now"
    monkeypatch.setenv("TEST_QUIT_NOW", str(now))
    monkeypatch.setenv("TEST_QUIT_IN", moment)
    worker = system.start_worker(imports="tests.integration.sample,tests.integration.quitting")
    assert sample.add.delay(1, 1).get(timeout=10) == 2
    now.touch()
    text = select.PIPE_BUF * "x"  # a job is written in two halves when a pipe may not take it whole
    # Many, or its processes have nothing more to do than to end.
    results = [sample.add.apply_async((text, "y")) for _ in range(200)]
    worker.process.wait(timeout=20)
    assert not now.exists()
    system.start_worker()
    assert [result.get(timeout=10) for result in results] == [text + "y"] * 200
