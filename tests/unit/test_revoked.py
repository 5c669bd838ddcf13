"""What the broker keeps of revoked tasks, and what a worker makes of it."""

from __future__ import annotations

import time

import fakeredis
import pytest
from celery.utils.collections import LimitedSet
from celery.worker import request, state

from agentlink.broker import revoked
from agentlink.broker.revoked import REVOKED_KEY, Known
from tasks import app
from tasks.control import Control


@pytest.fixture
def client() -> fakeredis.FakeRedis:
    return fakeredis.FakeRedis(server_type="valkey")


def _record(client: fakeredis.FakeRedis, task_ids: list[str], keep_s: float) -> None:
    for command in revoked.record_commands(task_ids, keep_s):
        client.execute_command(*command)


def _celerys() -> LimitedSet:
    return LimitedSet(maxlen=50, expires=60)


def test_ids_are_kept_as_long_as_asked_and_then_forgotten(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    _record(client, ["old"], 10)
    assert 10 <= client.ttl(REVOKED_KEY) <= 11
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 10.5)
    known = Known(celerys := _celerys())
    known.read_all(client)
    assert list(celerys) == []
    _record(client, ["new"], 10)
    assert client.zrange(REVOKED_KEY, 0, -1) == [b"new"]


def test_no_more_ids_are_kept_than_there_is_room_for(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revoked, "KEEP_IDS", 100)
    for number in range(130):
        _record(client, [f"{number}"], 1_000 + number)
    assert client.zcard(REVOKED_KEY) == 100
    assert client.zscore(REVOKED_KEY, "29") is None
    assert client.zscore(REVOKED_KEY, "30") is not None


def test_many_ids_are_recorded_in_commands_that_lua_can_hand_over(client: fakeredis.FakeRedis) -> None:
    commands = revoked.record_commands([f"{number}" for number in range(2_500)], 10)
    assert max(map(len, commands)) <= 2_002
    _record(client, [f"{number}" for number in range(2_500)], 10)
    assert client.zcard(REVOKED_KEY) == 2_500


def test_a_worker_forgets_nothing_that_is_recorded(client: fakeredis.FakeRedis) -> None:
    """Celery's own set keeps 50 here, and for a minute."""
    _record(client, [f"{number}" for number in range(200)], 1_000)
    known = Known(celerys := _celerys())
    known.read_all(client)
    celerys.purge(now=time.monotonic() + 3_600)  # what another worker's hello does
    assert len(celerys) == 200


def test_a_worker_learns_what_is_new_without_reading_the_rest(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    _record(client, [f"{number}" for number in range(200)], 1_000)
    known = Known(celerys := _celerys())
    known.read_all(client)
    _record(client, ["new"], 2_000)
    read: list[int] = []
    stock = client.zrangebyscore
    monkeypatch.setattr(
        client, "zrangebyscore", lambda *args, **kw: read.append(len(found := stock(*args, **kw))) or found
    )
    known.read_new(client)
    assert "new" in celerys
    known.read_new(client)
    assert read == [201, 1]  # what was recorded within a minute of the last is read again


def test_ids_that_only_celery_knows_are_cleared_out_when_there_are_too_many(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It adds those of expired tasks."""
    monkeypatch.setattr(revoked, "KEEP_IDS", 100)
    monkeypatch.setattr(revoked, "_ROOM", 100)
    _record(client, ["revoked"], 1_000)
    known = Known(celerys := _celerys())
    known.read_all(client)
    celerys.update(f"expired {number}" for number in range(250))
    known.read_new(client)
    assert list(celerys) == ["revoked"]


def test_celery_looks_where_we_tell_it() -> None:
    """Its set is asked by whoever takes a message, and is one and the same everywhere."""
    assert type(state.revoked) is LimitedSet
    assert request.revoked_tasks is state.revoked
    assert isinstance(app.control, Control)
