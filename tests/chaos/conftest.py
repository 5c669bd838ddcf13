"""The cluster on which chaos runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlink.broker import server
from agentlink.settings import load
from tests.chaos.cluster import Cluster
from tests.waiting import wait_until


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """An empty broker and no worker yet; afterwards no process is left."""
    server.ensure_running(load())
    cluster = Cluster(load(), tmp_path)
    cluster.client.flushall()
    yield cluster
    server.ensure_running(load())
    for worker in cluster.workers:
        worker.stop()
    wait_until(lambda: not cluster.processes_left(), what=f"the end of {cluster.processes_left()}")
    cluster.client.flushall()
