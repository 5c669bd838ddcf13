"""What the guard knows of the broker, and what the broker keeps of a person's orders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import fakeredis
import pytest
import redis

from agentlink.broker import guard_watch
from agentlink.broker.guard_watch import ORDERS_KEY, GuardWatch, give, ordered
from resource_guard.steering import Orders
from tests.waiting import wait_until

ORDERS = Orders(paused=True, reason="for lunch", until=2e9, limits={"memory": 6e9, "cpu": 0.5})


class Broker:
    """One that can be away, and tells of its memory as a test says."""

    def __init__(self) -> None:
        self.server = fakeredis.FakeServer()
        self.maxmemory = 1000
        self.asked = 0

    def client(self) -> redis.Redis:
        client = fakeredis.FakeStrictRedis(server=self.server)
        answers = {
            "memory": lambda: {"used_memory": 100, "maxmemory": self.maxmemory},
            "server": lambda: {"process_id": 4711},
        }
        make_pipeline = client.pipeline

        def pipeline(*arguments: Any, **options: Any) -> Any:
            """fakeredis knows no INFO."""
            self.asked += 1
            pipe = make_pipeline(*arguments, **options)
            asked: list[str] = []
            pipe.info = asked.append
            execute = pipe.execute
            pipe.execute = lambda: [*(answers[section]() for section in asked), *execute()]
            return pipe

        client.pipeline = pipeline  # type: ignore[method-assign]
        return client


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    monkeypatch.setattr(guard_watch, "_ASK_EVERY_S", 0.01)
    return Broker()


@pytest.fixture
def followed() -> list[Orders]:
    """What the guard was told of, each time."""
    return []


@pytest.fixture
def begin(broker: Broker, followed: list[Orders]) -> Iterator[Callable[..., GuardWatch]]:
    """A watch that asks until the test is over."""
    watches: list[GuardWatch] = []

    def begin(*, embedded: bool = True) -> GuardWatch:
        watches.append(GuardWatch(broker.client, top_pid=11, embedded=embedded))
        watches[-1].begin(followed.append)
        return watches[-1]

    yield begin
    for watch in watches:
        watch.end()


Begin = Callable[..., GuardWatch]


def test_what_is_known_of_the_broker_is_known_when_it_has_begun(begin: Begin) -> None:
    """Before a worker takes its first message."""
    watch = begin()
    assert watch.memory() == (100, 1000)
    assert watch.root_pids == [11, 4711]


def test_a_broker_elsewhere_is_no_process_of_ours(begin: Begin) -> None:
    """The number of its process means another one here."""
    assert begin(embedded=False).root_pids == [11]


def test_a_broker_without_a_limit_has_no_memory_to_watch(begin: Begin, broker: Broker) -> None:
    broker.maxmemory = 0
    assert begin().memory() is None


def test_orders_outlive_whoever_gave_them_and_reach_who_starts_later(
    begin: Begin, broker: Broker, followed: list[Orders]
) -> None:
    watch = begin()
    assert followed[0] == Orders()
    assert watch.order(lambda before: replace(ORDERS, limits=before.limits | ORDERS.limits)) == ORDERS
    watch.end()
    followed.clear()
    begin()
    assert followed[0] == ORDERS
    assert ordered(broker.client()) == ORDERS
    assert 80 * 86400 < broker.client().ttl(ORDERS_KEY) < 100 * 86400


def test_orders_that_change_are_followed(begin: Begin, broker: Broker, followed: list[Orders]) -> None:
    begin()
    give(broker.client(), lambda _: ORDERS)
    wait_until(lambda: followed[-1] == ORDERS, what="the pause")
    give(broker.client(), lambda _: Orders())
    wait_until(lambda: followed[-1] == Orders(), what="its end")


@pytest.mark.parametrize(
    "value",
    [
        "",
        "{",
        "7",
        "null",
        "[]",
        '{"paused": true, "tokens": 5}',
        '{"paused": true, "until": "soon"}',
        '{"paused": true, "limits": {"memory": "much"}}',
        '{"paused": true, "limits": [5]}',
    ],
)
def test_what_can_not_be_read_is_no_order(begin: Begin, broker: Broker, followed: list[Orders], value: str) -> None:
    """Written by hand, or by a version to come: the watch goes on, and the guard gets nothing it would stumble over."""
    broker.client().set(ORDERS_KEY, value)
    begin()
    wait_until(lambda: len(followed) > 2, what="the watch to go on")
    assert set(map(repr, followed)) == {repr(Orders())}


def test_while_the_broker_is_away_its_memory_is_unknown_and_orders_stand(
    begin: Begin, broker: Broker, followed: list[Orders]
) -> None:
    """A pause by hand does not end because nobody can be asked about it."""
    give(broker.client(), lambda _: ORDERS)
    watch = begin()
    broker.server.connected = False
    wait_until(lambda: watch.memory() is None, what="the watch to notice")
    asked = broker.asked
    wait_until(lambda: broker.asked > asked + 2, what="the watch to go on asking")
    assert followed[-1] == ORDERS
    broker.server.connected = True
    wait_until(watch.memory, what="the broker again")
    assert set(map(repr, followed)) == {repr(ORDERS)}


def test_it_begins_also_while_the_broker_is_away(begin: Begin, broker: Broker, followed: list[Orders]) -> None:
    broker.server.connected = False
    watch = begin()
    assert (watch.memory(), watch.root_pids, followed) == (None, [11], [])
    broker.server.connected = True
    wait_until(lambda: followed, what="the first orders")


def test_an_end_before_any_begin_is_fine(broker: Broker) -> None:
    GuardWatch(broker.client, top_pid=11, embedded=True).end()
