"""A browser, and Flower with our pages as it sees them. Without chromium these tests are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import work
from tests.browser.eyes import Eyes, browser
from tests.integration.conftest import running_system
from tests.integration.flower_server import FlowerServer, flower_server
from tests.integration.system import System

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def module_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    if CHROMIUM is None:
        pytest.skip("no chromium is installed: pages are not looked at")
    with running_system(tmp_path_factory.mktemp("system")) as system:
        yield system


@pytest.fixture(scope="module")
def flower(module_system: System) -> Iterator[FlowerServer]:
    with flower_server(module_system, imports=work.IMPORTS) as flower:
        yield flower


@pytest.fixture(scope="module")
def worker(module_system: System) -> None:
    module_system.start_worker(imports=work.IMPORTS)


@pytest.fixture
def eyes(flower: FlowerServer) -> Iterator[Eyes]:
    """A page on a dark screen; afterwards, nothing was said in the console and nothing asked of another host."""
    assert CHROMIUM
    with browser(Path(CHROMIUM), flower.url.rstrip("/")) as eyes:
        yield eyes
    assert eyes.complaints == []
