"""The system every integration test runs on, and what must hold after each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentlink.broker import server
from agentlink.settings import load
from tests.integration.system import System
from tests.waiting import wait_until


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """An empty broker, and workers as the test starts them; see `running_system`."""
    with running_system(tmp_path) as system:
        yield system


@pytest.fixture(scope="module")
def module_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One for all tests of a module."""
    with running_system(tmp_path_factory.mktemp("system")) as system:
        yield system


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The ledger."""
    path = tmp_path / "ledger"
    path.touch()
    return path


@contextmanager
def running_system(tmp_path: Path) -> Iterator[System]:
    """The broker and what a test starts.

    Afterwards: all workers are stopped, no process is left behind, every key has a TTL or is a permanent one.
    """
    settings = load()
    server.ensure_running(settings)
    system = System(settings, tmp_path)
    yield system
    for worker in system.workers:
        worker.stop()
    server.ensure_running(settings)
    try:
        wait_until(lambda: not system.processes_left(), what=f"the end of {system.processes_left()}")
        assert system.keys_without_ttl() == []
    finally:
        system.client.flushall()  # what one test leaves is not to fail the next
