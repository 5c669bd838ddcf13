"""A home of its own for the tests, set before anything of AgentLink is imported: settings are read once a process."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Short, because the broker's socket lives in it and a Unix socket's path is limited.
HOME = Path(tempfile.mkdtemp(prefix="agentlink-"))

(HOME / "none.toml").touch()  # not the one in the folder the tests are started from
for name in [name for name in os.environ if name.startswith("AGENTLINK_")]:
    del os.environ[name]
os.environ |= {
    "AGENTLINK_HOME": str(HOME),
    "AGENTLINK_CONFIG": str(HOME / "none.toml"),
    "AGENTLINK_IMPORTS": "tests.integration.sample",
    "AGENTLINK_FLOWER_PORT": "0",
}


@pytest.fixture(scope="session", autouse=True)
def _home_is_removed() -> Iterator[None]:
    yield
    from agentlink.broker import server
    from agentlink.settings import load

    server.stop(load())
    shutil.rmtree(HOME)
