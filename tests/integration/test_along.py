"""Results that travel with the acknowledgements of their messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from uuid import uuid4

import pytest
import redis
from celery import group

from agentlink.broker.along import Stored
from agentlink.broker.lease import IN_FLIGHT_PREFIX, LEASES_KEY, Lease
from tests.integration import sample
from tests.integration.system import System

QUEUE = "cpu"


def test_many_short_tasks_store_their_results_together(system: System) -> None:
    """Fewer scripts than tasks: each exchange of the worker stores what several tasks have returned."""
    calls = group(sample.add.s(number, 1) for number in range(600)).apply_async()
    system.client.config_resetstat()
    system.start_worker()
    assert calls.get(timeout=30) == [number + 1 for number in range(600)]
    stats = system.client.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] < 450
    meta = json.loads(system.client.get(f"celery-task-meta-{calls.results[-1].id}"))
    assert (meta["status"], meta["result"], meta["traceback"]) == ("SUCCESS", 600, None)
    assert system.client.ttl(f"celery-task-meta-{calls.results[-1].id}") > 0


def test_failures_and_what_others_wait_for_go_by_themselves(system: System) -> None:
    bad = group(sample.fail.s("no") for _ in range(50)).apply_async()
    chained = [(sample.add.s(number, 1) | sample.add.s(10)).apply_async() for number in range(50)]
    system.start_worker()
    assert [result.get(timeout=30) for result in chained] == [number + 11 for number in range(50)]
    assert [str(result.get(timeout=30, propagate=False)) for result in bad] == ["no"] * 50


def test_of_a_worker_killed_while_many_finish_every_task_has_its_result_in_the_end(system: System) -> None:
    calls = group(sample.add.s(number, 1) for number in range(3000)).apply_async()
    first = system.start_worker(lease="1s")
    calls.results[400].get(timeout=30)
    first.kill()
    system.start_worker(lease="1s")
    assert calls.get(timeout=40) == [number + 1 for number in range(3000)]


class TestTheExchange:
    """What the broker does with a result that comes with an acknowledgement."""

    @pytest.fixture
    def client(self, system: System) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(system.settings.socket_path))

    @pytest.fixture
    def lease(self, client: redis.Redis) -> Iterator[Lease]:
        pool = client.connection_pool
        lease = Lease(partial(redis.Redis, connection_pool=pool), length_s=5.0, separator="\x06\x16")
        lease.begin()
        yield lease
        lease.end()

    def _take(self, lease: Lease, client: redis.Redis) -> str:
        client.lpush(QUEUE, '{"headers": {}}')
        (taken,), _ = lease.exchange(client, [QUEUE], [], 1)
        return lease.tag(taken)

    def test_it_is_stored_and_told_in_the_same_step(self, client: redis.Redis, lease: Lease) -> None:
        key, value = f"result-{uuid4()}".encode(), b'{"status": "SUCCESS", "result": 1}'
        listener = client.pubsub(ignore_subscribe_messages=True)
        listener.subscribe(key.decode())
        listener.get_message(timeout=1)
        lease.acknowledge(self._take(lease, client), Stored(key, value, 60))
        lease.exchange(client, [], [], 0)
        assert client.get(key) == value
        assert 0 < client.ttl(key) <= 60
        assert client.hlen(IN_FLIGHT_PREFIX + lease.worker) == 0
        assert (listener.get_message(timeout=1) or {})["data"] == value

    def test_a_success_that_is_there_stands(self, client: redis.Redis, lease: Lease) -> None:
        key, first = f"result-{uuid4()}".encode(), b'{"status": "SUCCESS", "result": 1}'
        client.set(key, first, ex=60)
        lease.acknowledge(self._take(lease, client), Stored(key, b'{"status": "SUCCESS", "result": 2}', 60))
        lease.exchange(client, [], [], 0)
        assert client.get(key) == first

    def test_a_full_broker_takes_it(self, client: redis.Redis, lease: Lease) -> None:
        """Refusing it would lose what a task has done, and keep the message that makes room."""
        key, value = f"result-{uuid4()}".encode(), b'{"status": "SUCCESS", "result": 1}'
        tag = self._take(lease, client)
        before = client.config_get("maxmemory")["maxmemory"]
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(redis.OutOfMemoryError):
                client.set("anything", 1)
            lease.acknowledge(tag, Stored(key, value, 60))
            lease.exchange(client, [], [], 0)
        finally:
            client.config_set("maxmemory", before)
        assert client.get(key) == value

    def test_of_a_worker_that_has_lost_its_lease_nothing_is_stored(
        self, client: redis.Redis, lease: Lease, caplog: pytest.LogCaptureFixture
    ) -> None:
        key = f"result-{uuid4()}".encode()
        tag = self._take(lease, client)
        client.zrem(LEASES_KEY, lease.worker)
        lease.acknowledge(tag, Stored(key, b'{"status": "SUCCESS", "result": 1}', 60))
        lost = lease.worker
        lease.exchange(client, [], [], 0)
        assert not client.exists(key)
        assert "is not recorded" in caplog.text
        assert lease.worker != lost
        client.delete(IN_FLIGHT_PREFIX + lost)
