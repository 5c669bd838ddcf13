"""Readings over the last month: what is kept, what it takes, and what outlives whom."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import redis

from agentlink.monitoring import history, rings, workers
from agentlink.monitoring.rings import FIVE_MINUTES, RINGS, SECONDS, TENS
from agentlink.monitoring.writing import Writer
from tests.integration import sample
from tests.integration.system import System
from tests.waiting import wait_until


@pytest.fixture
def client(system: System) -> redis.Redis:
    return system.client


@pytest.fixture
def start_s(client: redis.Redis) -> int:
    """A while ago, at the beginning of five minutes."""
    now_s = int(client.time()[0])
    return now_s - now_s % 300 - 1200


def write(client: redis.Redis, since_s: int, until_s: int, writer: Writer | None = None) -> Writer:
    """A row each second, of what tells its own time."""
    writer = writer or Writer(client)
    for at_s in range(since_s, until_s):
        second = at_s - since_s
        values = {history.MEMORY_BYTES: second, history.DISK_FREE_BYTES: -second, history.TASKS_DONE: 2.0}
        writer.write(client, at_s, values | {history.CPU_FRACTION: second % 10}, {})
    return writer


def test_a_coarser_row_is_made_of_finer_ones_as_its_series_asks_for(client: redis.Redis, start_s: int) -> None:
    """Of memory the most, of what is left the least, of counts the sum, of the CPU the mean."""
    write(client, start_s, start_s + 311)
    rows = dict(rings.rows(client, TENS, start_s, start_s + 1000))
    columns = rings.columns(client)
    assert list(rows) == list(range(start_s, start_s + 310, 10))
    one = dict(zip(columns, rows[start_s + 20], strict=True))
    assert one == {"memory_bytes": 29, "disk_free_bytes": -29, "tasks_done": 20, "cpu_fraction": 4.5}
    ((at_s, row),) = rings.rows(client, FIVE_MINUTES, start_s, start_s + 1000)
    assert (at_s, dict(zip(columns, row, strict=True))) == (
        start_s, {"memory_bytes": 299, "disk_free_bytes": -299, "tasks_done": 600, "cpu_fraction": 4.5},
    )  # fmt: skip


def test_each_age_has_its_ring(client: redis.Redis, start_s: int) -> None:
    write(client, start_s, start_s + 301)
    now = time.time()
    for age_s, step_s in ((1000, 1), (5000, 10), (200_000, 300)):
        series = history.read(client, [history.TASKS_DONE, "nobody_knows"], now - age_s)
        assert {one.step_s for one in series.values()} == {step_s}
        assert set(series["nobody_knows"].values) == {None}
    done = history.read(client, [history.TASKS_DONE], start_s, start_s + 4)[history.TASKS_DONE]
    assert (list(done.times), done.values) == ([start_s + n for n in range(5)], [2.0] * 5)


def test_who_takes_over_in_the_middle_of_an_interval_makes_its_row_of_all_of_it(
    client: redis.Redis, start_s: int
) -> None:
    """And makes up for the intervals that were over while nobody wrote."""
    write(client, start_s, start_s + 17)
    write(client, start_s + 45, start_s + 61)
    done = {at_s - start_s: row[2] for at_s, row in rings.rows(client, TENS, start_s, start_s + 100)}
    assert done == {0: 20, 10: 14, 40: 10, 50: 20}


def test_a_clock_that_was_set_back_goes_over_the_same_time_again(client: redis.Redis, start_s: int) -> None:
    """The later row counts, and what was written for a time to come is not shown."""
    writer = write(client, start_s + 100, start_s + 131)
    now_s = int(client.time()[0])
    writer.write(client, now_s + 500, {history.MEMORY_BYTES: 1e12}, {})
    write(client, start_s + 95, start_s + 115, writer)
    memory = history.read(client, [history.MEMORY_BYTES], start_s + 90)[history.MEMORY_BYTES]
    assert [value for value in memory.values if value is not None] == [*range(20), *range(15, 31)]
    tens = history.read(client, [history.MEMORY_BYTES], now_s - 5000)[history.MEMORY_BYTES]
    assert max(value for value in tens.values if value is not None) < 100


def test_all_of_it_full_takes_less_than_its_budget(client: redis.Redis) -> None:
    """20 MB, with the most series there may be."""
    names = [f"series {number}" for number in range(rings.COLUMNS_MAX)]
    values = {name: 1e9 + number for number, name in enumerate(names)}
    before = client.info("memory")["used_memory_dataset"]
    client.rpush(rings.COLUMNS_KEY, *names)
    client.expire(rings.COLUMNS_KEY, 60)
    now_s = int(client.time()[0])
    for ring in RINGS:
        with client.pipeline(transaction=False) as pipe:
            for at_s in range(now_s - ring.span_s - ring.list_s, now_s, ring.step_s):
                rings.push(pipe, ring, at_s, names, values)
                if len(pipe) > 1000:
                    pipe.execute()
            pipe.execute()
    taken = client.info("memory")["used_memory_dataset"] - before
    assert 10_000_000 < taken < 20_000_000
    began_at = time.monotonic()
    month = history.read(client, names[:20], now_s - FIVE_MINUTES.span_s)
    assert time.monotonic() - began_at < 2
    assert all(None not in series.values[:-2] for series in month.values())


def test_no_more_series_than_there_may_be(client: redis.Redis, start_s: int) -> None:
    writer = Writer(client)
    writer.write(client, start_s, {f"series {number}": number for number in range(rings.COLUMNS_MAX + 5)}, {})
    assert len(history.names(client)) == rings.COLUMNS_MAX


def test_workers_write_it_and_it_outlives_them_and_the_broker(system: System, path: Path) -> None:
    """What was known before is there again, and one worker after the other goes on with it."""
    since = time.time()
    wanted = [history.MEMORY_BYTES, history.WORKERS, history.TASKS_DONE, history.TASKS_FAILED]

    def total(name: str) -> float:
        return sum(value or 0 for value in history.read(system.client, [name], since)[name].values)

    first = system.start_worker()
    wait_until(lambda: total(history.WORKERS) >= 2, what="two rows")
    for number in range(5):
        assert sample.add.delay(number, 1).get(timeout=10) == number + 1
    with pytest.raises(ValueError, match="no"):
        sample.fail.delay("no").get(timeout=10)
    wait_until(lambda: (total(history.TASKS_DONE), total(history.TASKS_FAILED)) == (5, 1), what="the counts")
    second = system.start_worker()
    wait_until(lambda: len(workers.read(system.client)) == 2, what="both")
    first.kill()
    system.restart_broker()
    rows = total(history.WORKERS)
    wait_until(lambda: list(workers.read(system.client)) == [f"{second.name}@test"], what="the second alone")
    wait_until(lambda: total(history.WORKERS) >= rows + 3, what="more rows")
    assert total(history.TASKS_DONE) == 5
    assert history.read(system.client, wanted, since)[history.MEMORY_BYTES].step_s == SECONDS.step_s
    assert set(workers.read(system.client)[f"{second.name}@test"]["resources"]) >= {"memory", "cpu", "disk_free"}
    assert second.stop() == 0
    assert workers.read(system.client) == {}


def test_how_much_waits_and_since_when_is_known_of_each_queue(system: System, path: Path) -> None:
    """Also of one from which no worker takes any more."""
    worker = system.start_worker("-Q", "cpu,other")
    depth, age = history.queue_depth("other"), history.queue_age("other")
    wait_until(lambda: depth in history.names(system.client), what="the queue's series")
    worker.stop()
    for _ in range(3):
        sample.add.apply_async((1, 1), queue="other")
    system.start_worker("-Q", "cpu")
    since = time.time()

    def last(name: str) -> float:
        known = [value for value in history.read(system.client, [name], since)[name].values if value is not None]
        return known[-1] if known else 0.0

    wait_until(lambda: last(depth) == 3 and last(age) > 1, what="what waits")
    assert last(age) < 30
    assert history.queues(system.client) == ["cpu", "other"]
    system.client.delete("other")
