"""Counting how tasks and runs end: names are bounded, nothing is lost while the broker is away."""

from __future__ import annotations

import fakeredis
import pytest
import redis

from agentlink.broker import outcomes
from agentlink.broker.outcomes import BOUNDS_S, COUNTING_ENDS, NAMES_MAX, Ends, Outcome


def test_seconds_are_counted_in_buckets() -> None:
    client, ends = fakeredis.FakeRedis(server_type="valkey"), Ends()
    for ran_s in (0, BOUNDS_S[0], 0.3, 1e9):
        ends.ended("t", Outcome.SUCCEEDED, ran_s)
    ends.ended("t", Outcome.FAILED)
    ends.waited("t", -0.2)  # by the clocks of two machines
    ends.tell(client)
    known = outcomes.read(client, "task")["t"]
    assert known.ended == {"succeeded": 4, "failed": 1}
    assert known.ran.buckets == (2, 0, 1, *[0] * (len(BOUNDS_S) - 3), 1)
    assert known.ran.sum_s == pytest.approx(1e9 + 0.31)
    assert (sum(known.waited.buckets), known.waited.sum_s) == (1, 0)


def test_scripts_and_workers_know_the_same_buckets() -> None:
    """Workflows are counted by scripts, tasks by workers."""
    client = fakeredis.FakeRedis(server_type="valkey")
    for seconds in (0, 0.01, 0.011, 0.5, 7, 14400, 14401):
        in_lua = client.eval(COUNTING_ENDS + "return bucket_of(tonumber(ARGV[1]))", 0, seconds)
        assert in_lua == outcomes._bucket_of(seconds), seconds


def test_what_an_absent_broker_was_not_told_it_is_told_later() -> None:
    server, ends = fakeredis.FakeServer(server_type="valkey"), Ends()
    client = fakeredis.FakeRedis(server=server)
    ends.ended("t", Outcome.SUCCEEDED)
    server.connected = False
    with pytest.raises(redis.ConnectionError):
        ends.tell(client)
    server.connected = True
    ends.ended("t", Outcome.SUCCEEDED)
    ends.tell(client)
    ends.tell(client)
    assert outcomes.read(client, "task")["t"].ended == {"succeeded": 2}


def test_names_beyond_the_most_are_one() -> None:
    """Whatever agents make names of, metrics have a bounded number of series."""
    client, ends = fakeredis.FakeRedis(server_type="valkey"), Ends()
    for number in range(NAMES_MAX + 50):
        ends.ended(f"t{number}", Outcome.SUCCEEDED)
    ends.tell(client)
    ends.ended("t1", Outcome.SUCCEEDED)
    ends.tell(client)
    known = outcomes.read(client, "task")
    assert len(known) == NAMES_MAX + 1
    assert (known["t1"].ended["succeeded"], known["other"].ended["succeeded"]) == (2, 50)


def test_a_name_that_is_long_unused_makes_room() -> None:
    client, ends = fakeredis.FakeRedis(server_type="valkey"), Ends()
    client.zadd("agentlink:outcomes:task", {f"old{number}": 1 for number in range(NAMES_MAX)})
    ends.ended("new", Outcome.SUCCEEDED)
    ends.tell(client)
    assert list(outcomes.read(client, "task")) == ["new"]


def test_everything_is_forgotten_in_its_time() -> None:
    client, ends = fakeredis.FakeRedis(server_type="valkey"), Ends()
    ends.ended("t", Outcome.SUCCEEDED)
    ends.tell(client)
    assert all(client.ttl(key) > 0 for key in client.scan_iter())
