"""What Celery and kombu promise of queues holds on our transport, also between it and kombu's own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Producer, Queue

from agentlink.broker.transport import Channel
from tasks import app
from tests.integration import sample
from tests.integration.system import REPOSITORY, System
from tests.waiting import wait_until

PROMPTLY_S = 1.5


@pytest.fixture
def connection(system: System) -> Iterator[Connection]:
    with app.connection_for_read() as connection:
        yield connection


@pytest.fixture
def queue(system: System, connection: Connection) -> Iterator[Queue]:
    """With three messages in it."""
    queue = Queue("own", routing_key="own")(connection.default_channel)
    queue.declare()
    producer = Producer(connection, routing_key="own", serializer="json")
    for number in range(3):
        producer.publish(number)
    yield queue
    connection.default_channel.lease.end()
    system.client.delete("own")


STOCK_CALLS = """
import sys, time
from celery import Celery
app = Celery(broker={url!r}, backend="redis+" + {result_url!r})
app.send_task("tests.integration.sample.add", (0, 0), queue="cpu").get(timeout=10)  # it imports and connects first
for number in range({count}):
    time.sleep(0.3)  # by now the worker has looked and found nothing
    called_at = time.monotonic()
    result = app.send_task("tests.integration.sample.add", (number, 1), queue="cpu", priority={priority})
    assert result.get(timeout=10) == number + 1
    print(time.monotonic() - called_at)
assert not any(name.split(".")[0] in ("agentlink", "tasks") for name in sys.modules)
"""


@pytest.mark.parametrize("priority", [0, 9])
def test_a_plain_celery_app_can_call_tasks_and_read_their_results(system: System, priority: int) -> None:
    """kombu's own transport tells nobody that it has queued a message; workers look once a second."""
    system.start_worker()
    settings = system.settings
    code = STOCK_CALLS.format(url=settings.url, result_url=settings.result_url, count=5, priority=priority)
    done = system.python(code)
    assert done.returncode == 0, done.stderr
    assert max(map(float, done.stdout.split())) < PROMPTLY_S


def test_a_connection_lost_as_a_call_declares_its_queue_is_made_again(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kombu's producer makes a new channel then, and goes on with the old one."""
    errors = iter([redis.ConnectionError("gone")])
    stock = Channel.queue_declare

    def queue_declare(*args: Any, **kwargs: Any) -> Any:
        for error in errors:
            raise error
        return stock(*args, **kwargs)

    sample.add.delay(1, 1)
    with app.producer_pool.acquire() as producer:
        producer.connection.declared_entities.clear()
    monkeypatch.setattr(Channel, "queue_declare", queue_declare)
    sample.add.delay(1, 1)
    assert system.client.llen("cpu") == 2


def test_the_most_urgent_message_is_taken_first_and_equals_in_turn(system: System) -> None:
    path = system.folder / "order"
    for turn in "ab":
        for priority in (0, 3, 9, 5):
            sample.append_line.apply_async((str(path), f"{priority}{turn}"), priority=priority)
    system.start_worker(concurrency=1)
    wait_until(lambda: path.exists() and len(path.read_text().split()) == 8, what="all eight")
    assert path.read_text().split() == ["9a", "9b", "5a", "5b", "3a", "3b", "0a", "0b"]


def test_a_message_given_back_is_the_next_one(connection: Connection, queue: Queue) -> None:
    seen: list[int] = []

    def refuse_once(body: int, message: Any) -> None:
        seen.append(body)
        if len(seen) == 1:
            message.requeue()
        else:
            message.ack()

    with Consumer(connection, [queue], callbacks=[refuse_once], prefetch_count=1):
        while len(seen) < 4:
            connection.drain_events(timeout=2)
    assert seen == [0, 0, 1, 2]


def test_purge_removes_what_waits_for_a_worker_or_for_its_time(system: System) -> None:
    sample.add.apply_async((1, 1), priority=9)
    sample.add.delay(1, 1)
    sample.add.apply_async((1, 1), countdown=60)
    assert app.control.purge() == 3
    assert system.client.keys("cpu*") == []
    assert system.client.keys("agentlink:delayed:*") == []


def test_a_worker_tells_its_queues_on_the_command_line(system: System) -> None:
    system.start_worker()
    answer = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tasks", "inspect", "active_queues"],
        cwd=REPOSITORY, env=system.environment(), text=True, capture_output=True, timeout=30, check=True,
    )  # fmt: skip
    assert "worker0@test: OK" in answer.stdout
    assert "'name': 'cpu'" in answer.stdout
    assert "1 node online" in answer.stdout


def test_a_single_message_can_be_got_and_acknowledged(system: System, connection: Connection, queue: Queue) -> None:
    message = queue.get()
    assert message is not None
    assert message.payload == 0
    message.ack()
    assert system.client.llen("own") == 2
    queue.get().ack()
    queue.get().ack()
    assert queue.get() is None


def test_a_single_message_got_and_refused_is_there_again(system: System, connection: Connection, queue: Queue) -> None:
    queue.get().requeue()
    wait_until(lambda: system.client.llen("own") == 3, what="all three")
    assert queue.get().payload == 0


def test_a_single_message_got_and_not_acknowledged_is_there_again(system: System, queue: Queue) -> None:
    with app.connection_for_read() as other:
        assert queue(other.default_channel).get().payload == 0
    wait_until(lambda: system.client.llen("own") == 3, what="all three")


def test_a_consumer_that_does_not_acknowledge_has_what_it_was_given(connection: Connection, queue: Queue) -> None:
    seen: list[int] = []
    with Consumer(connection, [queue], on_message=lambda message: seen.append(message.payload), no_ack=True):
        while len(seen) < 3:
            connection.drain_events(timeout=2)
    assert seen == [0, 1, 2]
    assert queue.get() is None


def test_a_consumer_that_stops_gives_back_what_it_has_not_acknowledged(system: System, queue: Queue) -> None:
    with app.connection_for_read() as other:
        seen: list[Any] = []
        with Consumer(other, [queue(other.default_channel)], on_message=seen.append):
            begun_at = time.monotonic()
            while len(seen) < 3:
                other.drain_events(timeout=2)
            assert time.monotonic() - begun_at < PROMPTLY_S
            seen[0].ack()
    wait_until(lambda: system.client.llen("own") == 2, what="the two not acknowledged")
    assert queue.get().payload == 1
