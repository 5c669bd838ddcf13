"""Messages of runs wait in turn: whoever has few does not wait for those who have many."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Producer

from agentlink.broker import dead_letters, queues
from agentlink.broker.transport import Channel
from celeryconfig import broker_transport_options
from tasks import app
from tests.integration import sample
from tests.integration.system import System
from tests.waiting import wait_until
from workflows import WorkflowRun

#: What the small runs may take, at most, beside a large one.
AT_MOST_TIMES = 3
LARGE = 5000
ROUNDS = 5


@pytest.fixture
def channel(system: System) -> Iterator[Channel]:
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        channel.queue_declare("cpu")
        yield channel
        channel.lease.end()


def _publish(channel: Channel, *bodies: str, root: str | None = None, **options: Any) -> None:
    """Messages named by their bodies; of a run, or of calls from outside any."""
    producer = Producer(channel, routing_key="cpu", serializer="json")
    for body in bodies:
        producer.publish(body, headers={"task": "t", "id": body, "root_id": root or body}, **options)


def _take(channel: Channel, count: int = 1000) -> list[str]:
    """Take and acknowledge up to so many messages, one by one."""
    bodies: list[str] = []
    while len(bodies) < count and (message := channel.basic_get("cpu", no_ack=True)) is not None:
        bodies.append(message.payload)
    return bodies


def test_runs_take_turns_and_each_is_first_in_first_out(channel: Channel) -> None:
    _publish(channel, *(f"a{number}" for number in range(5)), root="a")
    _publish(channel, "b0", "b1", root="b")
    _publish(channel, "c0", root="c")
    assert _take(channel) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3", "a4"]


def test_messages_of_runs_and_others_come_every_other_time(channel: Channel) -> None:
    _publish(channel, *(f"a{number}" for number in range(4)), root="a")
    _publish(channel, "x", "y")
    assert {*_take(channel, 2)} == {"a0", "x"}
    assert {*_take(channel, 2)} == {"a1", "y"}
    assert _take(channel) == ["a2", "a3"]


def test_the_most_urgent_comes_first_whoever_has_it(channel: Channel) -> None:
    _publish(channel, "low", root="a", priority=1)
    _publish(channel, "middle", priority=4)
    _publish(channel, "high", root="a", priority=8)
    assert _take(channel) == ["high", "middle", "low"]


def test_a_message_given_back_is_the_next_of_all(channel: Channel) -> None:
    _publish(channel, "a0", "a1", root="a")
    _publish(channel, "b0", root="b")
    message = channel.basic_get("cpu")
    assert message is not None
    message.requeue()
    channel.settle()
    assert _take(channel) == ["a0", "b0", "a1"]


def test_a_delayed_message_waits_in_turn_once_it_is_due(system: System, channel: Channel) -> None:
    _publish(channel, "a0", "a1", root="a")
    soon = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    producer = Producer(channel, routing_key="cpu", serializer="json")
    producer.publish("b0", headers={"task": "t", "id": "b0", "root_id": "b", "eta": soon})
    assert _lengths(system) == {"waiting": 2, "delayed": 1}
    assert _take(channel) == ["a0", "b0", "a1"]


def test_lengths_are_true_by_the_lists_that_flower_reads(system: System, channel: Channel) -> None:
    _publish(channel, *(f"a{number}" for number in range(30)), root="a")
    _publish(channel, "x", "y", priority=9)
    _publish(channel, "b0", root="b", priority=9)
    names = [f"cpu{Channel.sep}{step}" if step else "cpu" for step in broker_transport_options["priority_steps"]]
    assert sum(system.client.llen(name) for name in names) == 33
    assert _lengths(system)["waiting"] == channel._size("cpu") == 33
    _take(channel, 13)
    assert sum(system.client.llen(name) for name in names) == 20


def test_purge_leaves_nothing_of_runs_behind(system: System, channel: Channel) -> None:
    _publish(channel, *(f"a{number}" for number in range(30)), root="a")
    _publish(channel, "x")
    assert channel.queue_purge("cpu") == 31
    assert system.client.keys("cpu*") == []
    _publish(channel, "a30", root="a")
    assert _take(channel) == ["a30"]


def test_a_queue_that_is_deleted_leaves_nothing_of_runs_behind(system: System, channel: Channel) -> None:
    app.amqp.queues["cpu"](channel).declare()
    _publish(channel, "a0", "a1", root="a")
    channel.queue_delete("cpu")
    assert system.client.keys("cpu*") == []


def test_what_a_dead_worker_had_of_a_run_is_taken_again(system: System) -> None:
    go, started = system.folder / "go", system.folder / "started"
    worker = system.start_worker(concurrency=1, lease="1s")
    run: WorkflowRun = sample.waits.delay(str(go), str(started))
    wait_until(started.exists, what="the step's start")
    worker.kill()
    started.unlink()
    system.start_worker(concurrency=1, lease="1s")
    wait_until(started.exists, what="the step's second start")
    go.touch()
    assert run.get(timeout=20) == 2
    assert system.client.keys("cpu*") == []


def test_a_dead_letter_of_a_run_is_sent_again_and_taken(system: System) -> None:
    alive = system.folder / "alive"
    system.start_worker()
    run = sample.deadly.delay(str(alive))
    wait_until(lambda: dead_letters.count(system.client), what="the dead letter", timeout_s=30)
    alive.touch()
    assert dead_letters.send_again(system.client, list(dead_letters.find(system.client))) == 1
    assert run.get(timeout=20).startswith("survived")


@pytest.mark.timeout(120)
@pytest.mark.hogs
def test_small_runs_do_not_wait_for_a_large_one_that_was_first(system: System) -> None:
    """Twenty of three steps, after one of five thousand; five times, since they take no more than 0.2 s alone.

    With all of the CPU: alone they take less than what may be used at once, and beside the large run that is used up.
    """
    system.start_worker(cpu="100%")
    sample.sums.delay(1).get(timeout=20)
    alone_s = sum(_twenty_small_runs_s() for _ in range(ROUNDS))
    large = sample.parallel.delay(LARGE)
    wait_until(lambda: large.progress.steps_done >= 10, what="the large run's first steps")
    before = large.progress.steps_done
    beside_s = sum(_twenty_small_runs_s() for _ in range(ROUNDS))
    meanwhile = large.progress.steps_done - before
    assert not large.progress.ended, "the large run is too small to tell"
    assert beside_s <= AT_MOST_TIMES * alone_s, f"{beside_s:.2f} s beside a large run, {alone_s:.2f} s alone"
    assert meanwhile > 0
    assert large.get(timeout=60) == [2 * number for number in range(LARGE)]


def _twenty_small_runs_s() -> float:
    begun_at = time.monotonic()
    for number, run in [(number, sample.eightfold.delay(number)) for number in range(20)]:
        assert run.get(timeout=30) == 8 * number
    return time.monotonic() - begun_at


def _lengths(system: System) -> dict[str, int]:
    (entry,) = queues.lengths(system.client, ["cpu"])
    return {"waiting": entry["waiting"], "delayed": entry["delayed"]}
