"""One worker for all of the tutorial, as `agentlink up` would start it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agentlink.broker import server
from agentlink.settings import load
from tests.integration.system import System


@pytest.fixture(scope="package", autouse=True)
def _worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    server.ensure_running(load())
    system = System(load(), tmp_path_factory.mktemp("worker"))
    worker = system.start_worker()
    yield
    worker.stop()
    system.client.flushall()
