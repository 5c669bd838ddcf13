"""Limits by key: what the scripts that hand out messages, and those that end with one, make of them."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest

from agentlink.broker import dead_letters, limits, queues, revoked
from agentlink.broker.lease import DELAYED_PREFIX, Taken
from agentlink.broker.limits import Limit
from agentlink.broker.publishing import _PURGE
from agentlink.broker.transport import Channel
from tests.unit.made_broker import Broker
from tests.waiting import wait_until


@pytest.fixture
def broker() -> Broker:
    return Broker()


TWO = Limit(key="k", most=2)


class TestPlaces:
    def test_no_more_are_handed_out_than_may_be_at_once(self, broker: Broker) -> None:
        lease, other = broker.lease(), broker.lease()
        broker.send(TWO, "a", "b", "c", "d")
        assert list(broker.take(lease, 1)) == ["a"]
        assert list(broker.take(other, 4)) == ["b"]
        assert broker.take(lease, 4) == {}
        assert limits.waiting(broker.client) == [{"queue": "cpu", "key": "k", "waiting": 2, "held": 2}]

    def test_what_waits_holds_nobody_else_up(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(TWO, *(f"k{number}" for number in range(20)))
        broker.send(Limit(key="other", most=1), "o1", "o2")
        broker.send(None, "free")
        assert list(broker.take(lease, 4)) == ["k0", "k1", "o1", "free"]

    def test_the_next_is_handed_out_as_a_place_becomes_free_in_the_order_they_came(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(TWO, "a", "b", "c", "d", "e")
        tags = broker.take(lease, 5)
        for done, expected in (("a", "c"), ("b", "d"), ("c", "e")):
            broker.done(lease, tags[done])
            taken = broker.take(lease, 5)
            assert list(taken) == [expected]
            tags |= taken
        for tag in (tags["d"], tags["e"]):
            broker.done(lease, tag)
        assert broker.take(lease, 5) == {}
        assert broker.left() == []

    def test_another_worker_hears_that_a_place_is_free(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(TWO, "a", "b", "c")
        tags = broker.take(lease, 5)
        listener = broker.client.pubsub(ignore_subscribe_messages=True)
        listener.subscribe("agentlink:wake:cpu")
        listener.get_message()
        broker.done(lease, tags["a"])
        lease.exchange(broker.client, (), (), 0)
        assert listener.get_message() is not None
        assert list(broker.take(broker.lease())) == ["c"]

    def test_the_urgent_come_first_then_the_old(self, broker: Broker) -> None:
        lease, one = broker.lease(), Limit(key="k", most=1)
        broker.send(one, "first")
        (tag,) = broker.take(lease, 5).values()
        broker.send(one, "low1", "low2")
        broker.send(one, "run", root="r")
        assert broker.take(lease, 5) == {}
        broker.send(one, "high", priority=7)
        order = []
        for _ in range(4):
            broker.done(lease, tag)
            ((name, tag),) = broker.take(lease, 5).items()
            order.append(name)
        assert order[0] == "high"
        assert [name for name in order if name.startswith("low")] == ["low1", "low2"]
        assert set(order) == {"high", "low1", "low2", "run"}

    def test_an_urgent_task_comes_before_what_has_a_place_now(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(TWO, "a", "b", "c")
        tags = broker.take(lease, 5)
        broker.done(lease, tags["a"])
        broker.send(None, "urgent", priority=5)
        assert list(broker.take(lease, 2)) == ["urgent", "c"]

    def test_keys_take_turns(self, broker: Broker) -> None:
        lease = broker.lease()
        for key in ("k", "l"):
            broker.send(Limit(key=key, most=4), *(f"{key}{number}" for number in range(8)))
        tags = broker.take(lease, 16)
        for tag in tags.values():
            broker.done(lease, tag)
        assert sorted(broker.take(lease, 4)) == ["k4", "k5", "l4", "l5"]

    def test_a_key_may_be_that_of_tasks_in_several_queues(self, broker: Broker) -> None:
        lease, one = broker.lease(), Limit(key="k", most=1)
        broker.send(one, "a")
        broker.send(one, "b", queue="io")
        tags = broker.take(lease)
        assert broker.take(lease, queue="io") == {}
        broker.done(lease, tags["a"])
        assert list(broker.take(lease, queue="io")) == ["b"]

    def test_many_of_a_key_are_set_apart_a_part_at_a_time(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(Limit(key="k", most=1), *(f"{number:03}" for number in range(300)))
        broker.send(None, "free")
        assert list(broker.take(lease, 2)) == ["000"]
        assert broker.next_due_s == 0.001
        assert list(broker.take(lease, 1)) == ["free"]
        assert queues.lengths(broker.client, ["cpu"]) == [{"name": "cpu", "waiting": 0, "delayed": 0, "limited": 299}]

    @pytest.mark.parametrize("key", ['", "', 'a"b\\', "ключ", "x" * 5000, "", "a\0b\1c", "😀" * 100])
    def test_a_key_may_be_any_text(self, broker: Broker, key: str) -> None:
        lease = broker.lease()
        broker.send(Limit(key=key, most=1), "a", "b")
        tags = broker.take(lease, 5)
        assert list(tags) == ["a"]
        (waiting,) = limits.waiting(broker.client)
        assert waiting["key"] == key or (len(waiting["key"]) == 83 and key.startswith(waiting["key"][:50]))
        broker.done(lease, tags["a"])
        assert list(broker.take(lease, 5)) == ["b"]


class TestEnds:
    """However a message ceases to be in flight, its place is free, and it keeps its turn."""

    def test_given_back_it_is_the_next_of_its_key(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(Limit(key="k", most=2), "a", "b", "c")
        for tag in broker.take(lease, 5).values():
            lease.give_back(tag)
        assert list(broker.take(lease, 5)) == ["a", "b"]

    def test_one_that_died_or_was_evicted_waits_for_a_place_with_what_is_told_of_it(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(Limit(key="k", most=2), "a", "b", "c")
        tags = broker.take(lease, 5)
        lease.give_back_evicted(tags["b"], 1, 1000)
        lease.give_back(tags["a"], counted=True)
        lease.exchange(broker.client, (), (), 0)
        assert len(limits.waiting(broker.client)) == 1
        assert set(broker.take(lease, 5)) == {"a", "b"}
        told = {one["headers"]["id"]: one for one in broker.messages}
        assert told["a"]["agentlink_deliveries"] == 1
        assert told["b"]["agentlink_evicted"] == [1, 1000]

    def test_a_dead_workers_places_are_free_with_its_lease(self, broker: Broker) -> None:
        dead = broker.lease(length_s=0.2)
        broker.send(TWO, "a", "b", "c")
        tags = broker.take(dead, 5)
        dead.started(tags["b"])
        dead.exchange(broker.client, (), (), 0)
        lease = broker.lease(length_s=0.2)
        assert broker.take(lease, 5) == {}

        def look() -> dict[str, str]:
            lease._beat(broker.client, begin=False)
            return broker.take(lease, 5)

        taken = wait_until(look, what="the end of the dead worker's lease")
        assert list(taken) == ["a", "b"]
        assert [one.get("agentlink_deliveries", 0) for one in broker.messages] == [0, 1]
        for tag in taken.values():
            broker.done(lease, tag)
        broker.done(lease, broker.take(lease, 5)["c"])
        assert broker.take(lease, 5) == {}
        assert broker.left() == []

    def test_a_worker_that_ends_leaves_no_place_held(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(TWO, "a", "b", "c")
        broker.take(lease, 5)
        lease.end()
        assert list(broker.take(broker.lease(), 5)) == ["a", "b"]

    def test_an_acknowledgement_sent_twice_frees_one_place(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(TWO, "a", "b", "c", "d")
        tags = broker.take(lease, 5)
        broker.done(lease, tags["a"])
        assert list(broker.take(lease, 5)) == ["c"]
        lease._waiting.acknowledged.append(int(tags["a"].rpartition("/")[2]))
        assert broker.take(lease, 5) == {}

    def test_one_that_was_revoked_needs_no_place_and_its_worker_is_told(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(Limit(key="k", most=1, interval_us=3_600_000_000), "a", "b", "c")
        for command in revoked.record_commands(["a", "b"], 60):
            broker.client.execute_command(*command)
        assert list(broker.take(lease, 5)) == ["a", "b", "c"]
        assert [one.get("agentlink_revoked") for one in broker.messages] == [True, True, None]

    def test_what_the_worker_is_told_reaches_those_who_know_of_the_revoked(self) -> None:
        told: list[str] = []
        channel: Any = SimpleNamespace(
            on_revoked=told.append, lease=SimpleNamespace(tag=str), qos=SimpleNamespace(in_hand=0, prefetch_count=0)
        )
        message = b'{"agentlink_revoked": true, "headers": {"id": "a"}, "properties": {}}'
        payload = Channel._payload(channel, Taken(number=1, key="cpu", message=message))
        assert told == ["a"]
        assert "agentlink_revoked" not in payload

    def test_a_letter_sent_again_has_its_limit(self, broker: Broker) -> None:
        marked = TWO.marked(json.dumps({"body": "", "headers": {"id": "a"}}), "a", 0)
        again = json.dumps(dead_letters._as_new(json.loads(f'{{"agentlink_deliveries": 2, {marked[1:]}')))
        assert again.startswith(marked[:60])

    def test_purged_they_are_gone(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(TWO, "a", "b", "c", "d")
        broker.send(None, "free")
        tags = broker.take(lease, 2)
        assert broker.take(lease, 0) == {}
        broker.take(lease, 1)
        broker.send(TWO, "e")
        names = queues.keys("cpu")
        assert broker.client.eval(_PURGE, 1 + len(names), DELAYED_PREFIX + "cpu", *names, "cpu") == 3
        assert broker.take(lease, 5) == {}
        broker.done(lease, tags["a"])
        broker.done(lease, tags["b"])
        assert broker.take(lease, 5) == {}
        assert broker.left() == []


class TestRates:
    def test_one_comes_when_it_is_due(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(Limit(key="k", interval_us=100_000), "a", "b", "c")
        begun_at = time.monotonic()
        order: list[str] = []
        while len(order) < 3 and time.monotonic() < begun_at + 5:
            taken = list(broker.take(lease, 5))
            assert len(taken) <= 1
            order += taken
            if len(order) < 3:
                assert broker.next_due_s is not None
                assert 0 < broker.next_due_s <= 0.101
            time.sleep(broker.next_due_s or 0)
        assert order == ["a", "b", "c"]
        assert 0.2 <= time.monotonic() - begun_at < 1

    def test_at_high_rates_some_come_together(self, broker: Broker) -> None:
        broker.send(Limit(key="k", interval_us=10_000, ahead_us=90_000), *(str(number) for number in range(50)))
        assert 10 <= len(broker.take(broker.lease(), 50)) <= 12

    def test_what_is_given_back_before_it_began_counts_once(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(Limit(key="k", interval_us=3_600_000_000), "a", "b")
        lease.give_back(broker.take(lease, 5)["a"])
        tags = broker.take(lease, 5)
        assert list(tags) == ["a"]
        lease.started(tags["a"])
        broker.take(lease, 0)
        lease.give_back(tags["a"], counted=True)
        assert broker.take(lease, 5) == {}

    def test_both_limits_hold(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(Limit(key="k", most=1, interval_us=50_000), "a", "b", "c")
        tags = broker.take(lease, 5)
        assert list(tags) == ["a"]
        wait_until(lambda: not broker.client.exists("agentlink:limit:k:clock"), what="the time of the next")
        assert broker.take(lease, 5) == {}
        broker.done(lease, tags["a"])
        tags = broker.take(lease, 5)
        assert list(tags) == ["b"]
        broker.done(lease, tags["b"])
        assert broker.take(lease, 5) == {}


def test_messages_without_limits_leave_no_trace(broker: Broker) -> None:
    lease = broker.lease()
    broker.send(None, "a", "b")
    tags = broker.take(lease, 5)
    lease.give_back(tags["b"])
    broker.done(lease, tags["a"])
    assert list(broker.take(lease, 5)) == ["b"]
    assert broker.left() == []
