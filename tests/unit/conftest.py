"""A guard over readings that a test sets."""

from __future__ import annotations

import pytest

from resource_guard import Guard
from tests.unit.made_guard import Make, Readings, maker


@pytest.fixture
def readings() -> Readings:
    return Readings()


@pytest.fixture
def make(readings: Readings) -> Make:
    return maker(readings)


@pytest.fixture
def guard(make: Make) -> Guard:
    return make()
