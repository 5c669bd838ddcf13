"""What is written to the log of events, and what is not."""

from __future__ import annotations

import fakeredis
import pytest

from agentlink.broker import event_log
from agentlink.broker.event_log import EVENTS, EVENTS_KEY, KINDS, RATE_KEY, Level
from agentlink.monitoring import events
from agentlink.monitoring.events import FIRST


@pytest.fixture
def client() -> fakeredis.FakeRedis:
    return fakeredis.FakeRedis(server_type="valkey")


def tell(client: fakeredis.FakeRedis, *kinds: str) -> None:
    event_log.tell(client, [(kind, {"run_id": "r"}) for kind in kinds])


def test_events_are_read_in_order_by_id_and_by_kind(client: fakeredis.FakeRedis) -> None:
    assert events.latest_id(client) == FIRST
    tell(client, "workflow-called", "step-failed", "workflow-failed", "step-failed")
    everything = events.read(client, FIRST, 10)
    assert [event.kind for event in everything] == ["workflow-called", "step-failed", "workflow-failed", "step-failed"]
    assert events.read(client, everything[1].id, 10) == everything[2:]
    assert events.read(client, FIRST, 1, {"workflow-failed"}) == [everything[2]]
    assert events.read_latest(client, 2) == everything[:1:-1]
    assert events.read_latest(client, 9, {"step-failed"}) == [everything[3], everything[1]]
    assert events.read_latest(client, 9, until_id=everything[0].id) == [everything[0]]
    assert events.latest_id(client) == everything[-1].id


def test_what_is_unknown_is_left_out_and_long_texts_are_cut(client: fakeredis.FakeRedis) -> None:
    event_log.tell(client, [("alert-firing", {"alert": "a", "value": None, "text": 600 * "ä"})])
    (event,) = events.read(client, FIRST, 10)
    assert event.fields == {"alert": "a", "text": 499 * "ä" + "…"}


@pytest.mark.parametrize(
    ("level", "told"),
    [
        (Level.OFF, []),
        (Level.BASIC, ["workflow-failed"]),
        (Level.STANDARD, ["workflow-failed", "workflow-called"]),
        (Level.FULL, ["workflow-failed", "workflow-called", "step-started"]),
    ],
)
def test_each_level_tells_more(client: fakeredis.FakeRedis, level: Level, told: list[str]) -> None:
    """What a person orders goes before what settings say."""
    event_log.keep_settings(client, "basic", 200)
    assert events.level_now(client) is Level.BASIC
    events.order_level(client, level)
    assert events.level_now(client) is level
    tell(client, "workflow-failed", "workflow-called", "step-started")
    assert [event.kind for event in events.read(client, FIRST, 10)] == told
    events.order_level(client, None)
    assert events.level_now(client) is Level.BASIC


def test_what_was_left_out_of_a_second_is_told_in_the_next(client: fakeredis.FakeRedis) -> None:
    event_log.keep_settings(client, "full", 1)
    client.hset(RATE_KEY, mapping={"1000": 500, "step-started": 300, "step-succeeded": 150})
    tell(client, "step-started")
    summary, event = events.read(client, FIRST, 10)
    assert summary.fields == {"second": 1000, "left_out": {"step-started": 300, "step-succeeded": 150}, "sample": 100}
    assert event.kind == "step-started"


@pytest.mark.parametrize(("broker_bytes", "kept"), [(0, 20_000), (16_000_000, 1000), (10**8, 3333), (10**9, 20_000)])
def test_a_small_broker_keeps_fewer_events(client: fakeredis.FakeRedis, broker_bytes: int, kept: int) -> None:
    event_log.keep_settings(client, "full", 10**6, broker_bytes)
    assert client.hget(event_log.HOW_KEY, "kept") == str(kept).encode()


def test_the_oldest_events_go(client: fakeredis.FakeRedis) -> None:
    event_log.keep_settings(client, "full", 10**6, 16_000_000)
    tell(client, "workflow-called", *["step-started"] * 1200)
    assert 1000 <= client.xlen(EVENTS_KEY) < 1200
    assert events.read(client, FIRST, 1)[0].kind == "step-started"


def test_that_nothing_can_be_told_changes_nothing(client: fakeredis.FakeRedis) -> None:
    """Whatever somebody else keeps under the log's name: the script around it goes on."""
    client.set(EVENTS_KEY, "no stream")
    assert (
        client.eval(EVENTS + "tell('workflow-failed', {}) tell('no such kind', {}) return 'went on'", 0) == b"went on"
    )


def test_kinds_are_named_by_what_they_are_about() -> None:
    assert {kind.partition("-")[0] for kind in KINDS} == {"workflow", "step", "guard", "alert", "agent"}
    assert all(name == kind.name for name, kind in KINDS.items())
