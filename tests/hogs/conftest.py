"""Where hogs run: a system of the command line's worker and Flower, and a small disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import small_disk as disks
from tests.integration.conftest import running_system
from tests.integration.system import System

SMALL_DISK_MB = 64


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """An empty broker, and workers as the test starts them."""
    with running_system(tmp_path) as system:
        yield system


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A disk of 64 MB; None where this user may not mount one."""
    path = tmp_path / "small"
    path.mkdir()
    with disks.small_disk(path, SMALL_DISK_MB) as mounted:
        yield path if mounted else None
