"""What every test of schedules stands on."""

from __future__ import annotations

import time

import fakeredis
import pytest

from tests.unit.schedules.made import Broker, Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


@pytest.fixture
def client(clock: Clock) -> fakeredis.FakeRedis:
    return fakeredis.FakeRedis(server_type="valkey", version=(8,))


@pytest.fixture
def broker(client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch) -> Broker:
    return Broker(client, monkeypatch)
