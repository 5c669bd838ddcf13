"""When messages were queued: each tells, whatever else it tells."""

from __future__ import annotations

import json
import time

from agentlink.broker import queues
from agentlink.broker.lease import TURNS
from agentlink.broker.limits import Limit
from tests.unit.made_broker import Broker


def test_a_message_tells_when_it_was_queued() -> None:
    broker = Broker()
    before = time.time()
    broker.send(None, "a")
    broker.take(broker.lease())
    [message] = broker.messages
    assert before - 0.001 <= message["queued_at"] <= time.time()
    assert message["headers"] == {"id": "a"}


def test_one_that_is_queued_again_was_queued_now() -> None:
    broker = Broker()
    broker.send(None, "a")
    first = broker.client.lindex("cpu", 0)
    broker.client.delete("cpu")
    broker.client.eval(TURNS + "enqueue(KEYS[1], ARGV[1])", 1, "cpu", first)
    again = broker.client.lindex("cpu", 0)
    assert again.count(b"queued_at") == 1
    assert json.loads(again)["queued_at"] > json.loads(first)["queued_at"]


def test_a_mark_at_its_beginning_is_found_all_the_same() -> None:
    broker = Broker()
    broker.send(Limit(key="k", most=1), "a", "b")
    assert list(broker.take(broker.lease(), 2)) == ["a"]
    assert "queued_at" in broker.messages[0]


def test_a_queue_has_waited_since_its_oldest_message_was_queued() -> None:
    broker = Broker()
    broker.send(None, "a", priority=9)
    broker.send(None, "b", root="run 1")
    broker.send(None, "c", root="run 2")
    taken = json.loads(broker.client.lindex(queues.keys("cpu")[9], 0))["queued_at"]
    assert queues.waiting_since(broker.client, ["cpu", "io"]) == {"cpu": taken}


def test_of_runs_that_take_turns_the_oldest_counts() -> None:
    broker = Broker()
    lease = broker.lease()
    broker.send(None, "a", root="run 1")
    broker.send(None, "b", root="run 1")
    broker.send(None, "c", root="run 2")
    assert list(broker.take(lease)) == ["a"]  # it is run 2's turn now, and run 1 has waited longer
    since = json.loads(broker.client.lindex(f"{queues.keys('cpu')[10]}\1run 1", -1))["queued_at"]
    assert queues.waiting_since(broker.client, ["cpu"]) == {"cpu": since}


def test_a_message_of_a_plain_celery_client_tells_nothing() -> None:
    broker = Broker()
    broker.client.lpush("cpu", '{"body": ""}')
    assert queues.waiting_since(broker.client, ["cpu"]) == {}
