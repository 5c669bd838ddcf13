"""What is reserved for a task, after what its like have taken."""

from __future__ import annotations

import fakeredis
import pytest
import redis

from agentlink.broker import profiles as kept
from agentlink.broker.profiles import Profiles
from resource_guard.caps import Used
from resource_guard.profiles import KEPT, profile
from tests.waiting import wait_until

MB = 1_000_000


def used(peak_mb: float, cpu_s: float = 0.5, wall_s: float = 1.0) -> Used:
    return Used(peak_bytes=int(peak_mb * MB), cpu_s=cpu_s, wall_s=wall_s)


def test_a_reservation_covers_nearly_all_that_was_measured_and_a_little_more() -> None:
    measures = [used(100 + number) for number in range(40)]
    assert 138 * MB < profile("a", measures).memory_bytes < 150 * MB


def test_one_outlier_of_many_is_not_reserved_for() -> None:
    assert profile("a", [used(100)] * 39 + [used(5000)]).memory_bytes < 110 * MB
    assert profile("a", [used(100)] * 39 + [used(5000)]).peak_bytes == 5000 * MB


def test_a_single_measure_is_a_profile() -> None:
    known = profile("a", [used(50, cpu_s=3.0, wall_s=2.0)])
    assert (known.runs, known.cpu_cores, known.wall_s) == (1, 1.5, 2.0)


def test_the_first_run_of_each_process_does_not_make_a_name_long() -> None:
    """They import; of a name that is often long, more runs are."""
    short, first = [used(1, wall_s=0.001)] * 18, [used(1, wall_s=0.5)]
    assert profile("a", first * 2 + short).mostly_s == 0.001
    assert profile("a", first * 3 + short).mostly_s == 0.5


class TestInTheBroker:
    @pytest.fixture
    def server(self) -> fakeredis.FakeServer:
        return fakeredis.FakeServer()

    @pytest.fixture
    def client(self, server: fakeredis.FakeServer) -> redis.Redis:
        return fakeredis.FakeStrictRedis(server=server)

    def _profiles(self, server: fakeredis.FakeServer) -> Profiles:
        return Profiles(lambda: fakeredis.FakeStrictRedis(server=server))

    def test_what_one_worker_learns_another_knows(self, server: fakeredis.FakeServer) -> None:
        one, other = self._profiles(server), self._profiles(server)
        one.begin()
        one.learn("a", used(100))
        assert one.of("a")
        one.end()
        other.begin()
        known = other.of("a")
        assert known is not None
        assert known.peak_bytes == 100 * MB
        other.end()

    def test_what_has_not_changed_is_not_read_again(self, client: redis.Redis) -> None:
        kept.record(client, {"old": [used(1)]})
        known, until = kept.read(client)
        assert list(known) == ["old"]
        kept.record(client, {"new": [used(2)]})
        known, later = kept.read(client, until + 1e-6)
        assert list(known) == ["new"]
        assert kept.read(client, later + 1e-6) == ({}, later + 1e-6)

    def test_only_the_last_measures_count_and_none_for_ever(
        self, server: fakeredis.FakeServer, client: redis.Redis
    ) -> None:
        learner = self._profiles(server)
        learner.begin()
        for _ in range(KEPT):
            learner.learn("a", used(500))
        for _ in range(KEPT):
            learner.learn("a", used(10))
        learner.end()
        (known,) = kept.profiles(client)
        assert (known.runs, known.peak_bytes) == (KEPT, 10 * MB)
        assert client.ttl(kept.MEASURES_PREFIX + "a") > 0

    def test_a_broker_that_is_away_loses_nothing(self, server: fakeredis.FakeServer, client: redis.Redis) -> None:
        learner = self._profiles(server)
        server.connected = False
        learner.begin()
        learner.learn("a", used(10))
        server.connected = True
        wait_until(lambda: kept.profiles(client), what="the profile in the broker")
        learner.end()
        assert kept.profiles(client)[0].runs == 1

    def test_the_first_runs_are_all_measured_and_later_ones_sometimes(self, server: fakeredis.FakeServer) -> None:
        learner = self._profiles(server)
        assert learner.wants("a")
        for _ in range(30):
            learner.learn("a", used(10))
        wanted = sum(learner.wants("a") for _ in range(1600))
        assert 30 < wanted < 250
