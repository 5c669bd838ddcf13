"""What the broker does with the message of a task that was ended to free memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

import pytest
import redis
from kombu import Producer

from agentlink.broker.calls import DELIVERIES_HEADER, EVICTED_HEADER
from agentlink.broker.lease import IN_FLIGHT_PREFIX, STARTED_PREFIX, Lease
from agentlink.broker.transport import Channel
from tasks import app
from tests.integration.system import System

QUEUE = "cpu"
MESSAGE = {"body": "eyJhIjogMX0=", "headers": {"task": "a.task", "note": '{"agentlink_evicted": [9, 9], '}}


@pytest.fixture
def client(system: System) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(system.settings.socket_path))


@pytest.fixture
def lease(client: redis.Redis) -> Iterator[Lease]:
    lease = Lease(
        partial(redis.Redis, connection_pool=client.connection_pool), length_s=5.0, separator="\x06\x16"
    )  # fmt: skip
    lease.begin()
    yield lease
    client.delete(QUEUE)
    lease.end()


def put(client: redis.Redis, *messages: object) -> None:
    for message in messages:
        client.lpush(QUEUE, json.dumps(message))


def take(client: redis.Redis, lease: Lease) -> str:
    """Take the next message; its tag."""
    [taken], _ = lease.exchange(client, [QUEUE], [], 1)
    return lease.tag(taken)


def tell(client: redis.Redis, lease: Lease) -> list[dict[str, object]]:
    """Send what waits; what is in the queue then, the next one first."""
    lease.exchange(client, [], [], 0)
    return [json.loads(message) for message in reversed(client.lrange(QUEUE, 0, -1))]


def test_it_goes_to_the_head_of_its_queue_with_its_count_and_what_is_to_be_reserved(
    client: redis.Redis, lease: Lease
) -> None:
    put(client, MESSAGE, {"headers": {}})
    lease.give_back_evicted(take(client, lease), 1, 600_000_000)
    first, second = tell(client, lease)
    assert first == {"agentlink_evicted": [1, 600_000_000], **MESSAGE}
    assert second == {"headers": {}}
    assert client.hlen(IN_FLIGHT_PREFIX + lease.worker) == 0


def test_one_that_was_started_is_so_no_more(client: redis.Redis, lease: Lease) -> None:
    """Were its worker to die now, that would be no delivery of it."""
    put(client, MESSAGE)
    tag = take(client, lease)
    lease.started(tag)
    tell(client, lease)
    assert client.hlen(STARTED_PREFIX + lease.worker) == 1
    lease.give_back_evicted(tag, 1, 600_000_000)
    tell(client, lease)
    assert client.hlen(STARTED_PREFIX + lease.worker) == 0


def test_a_second_eviction_takes_the_place_of_the_first(client: redis.Redis, lease: Lease) -> None:
    put(client, MESSAGE)
    for times, reserve_bytes in ((1, 600), (2, 1200)):
        lease.give_back_evicted(take(client, lease), times, reserve_bytes)
        [message] = tell(client, lease)
        assert message == {"agentlink_evicted": [times, reserve_bytes], **MESSAGE}
    assert client.lindex(QUEUE, 0).count(b"agentlink_evicted") == 2  # its own, and the words in the note


@pytest.mark.parametrize("died_first", [True, False])
def test_evictions_and_deaths_are_told_apart(client: redis.Redis, lease: Lease, died_first: bool) -> None:
    """In whichever order they come, and again."""
    put(client, MESSAGE)
    for round_ in (1, 2):
        for died in (died_first, not died_first):
            tag = take(client, lease)
            if died:
                lease.give_back(tag, counted=True)
            else:
                lease.give_back_evicted(tag, round_, 600 * round_)
            [message] = tell(client, lease)
        assert message == {
            "agentlink_deliveries": round_, "agentlink_evicted": [round_, 600 * round_], **MESSAGE,
        }  # fmt: skip


def test_said_twice_it_comes_back_once(client: redis.Redis, lease: Lease) -> None:
    """The answer of the broker may get lost, and then all is sent again."""
    put(client, MESSAGE)
    tag = take(client, lease)
    lease.give_back_evicted(tag, 1, 600)
    again = lease._waiting
    tell(client, lease)
    lease._waiting = again
    assert len(tell(client, lease)) == 1


@pytest.mark.parametrize("what", ["started", "given back", "died", "evicted"])
def test_a_full_broker_takes_it(client: redis.Redis, lease: Lease, what: str) -> None:
    """Refused, it would end the worker: this is its main process, which has nobody to tell it to later."""
    put(client, MESSAGE)
    tag = take(client, lease)
    before = client.config_get("maxmemory")["maxmemory"]
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.OutOfMemoryError):
            client.set("anything", 1)
        if what == "started":
            lease.started(tag)
        elif what == "evicted":
            lease.give_back_evicted(tag, 1, 600)
        else:
            lease.give_back(tag, counted=what == "died")
        messages = tell(client, lease)
    finally:
        client.config_set("maxmemory", before)
    assert len(messages) == (0 if what == "started" else 1)
    assert client.hlen(STARTED_PREFIX + lease.worker) == (1 if what == "started" else 0)


def test_acknowledged_and_evicted_at_once_each_is_what_it_is(client: redis.Redis, lease: Lease) -> None:
    """All lists that an exchange carries together, so that none is taken for another."""
    put(client, *({"headers": {"id": number}} for number in range(4)))
    tags = [take(client, lease) for _ in range(4)]
    lease.acknowledge(tags[0])
    lease.give_back(tags[1])
    lease.give_back(tags[2], counted=True)
    lease.give_back_evicted(tags[3], 2, 7)
    messages = {message["headers"]["id"]: message for message in tell(client, lease)}  # type: ignore[index]
    assert messages == {
        1: {"headers": {"id": 1}},
        2: {"agentlink_deliveries": 1, "headers": {"id": 2}},
        3: {"agentlink_evicted": [2, 7], "headers": {"id": 3}},
    }


@pytest.mark.usefixtures("system")
def test_a_channel_gives_it_to_the_worker_as_headers() -> None:
    with app.connection_for_read() as connection:
        channel: Channel = connection.default_channel
        channel.queue_declare(QUEUE)
        Producer(channel, routing_key=QUEUE, serializer="json").publish({}, headers={"task": "t", "id": "1"})
        for evictions in (1, 2):
            message = channel.basic_get(QUEUE)
            channel.lease.give_back_evicted(message.delivery_tag, evictions, 600)
            channel.qos.forget(message.delivery_tag)
            channel.settle()
        message = channel.basic_get(QUEUE)
        assert message.headers[EVICTED_HEADER] == [2, 600]
        assert DELIVERIES_HEADER not in message.headers
        assert not message.properties["delivery_info"].get("redelivered")
        channel.qos.ack(message.delivery_tag)
        channel.settle()
        channel.lease.end()
