"""Of one key no more run at once, or begin in a time, than its tasks say: over all workers, and at nobody's cost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import redis
from celery.exceptions import TaskRevokedError
from rich.console import Console

from agentlink import status
from agentlink.broker import limits, queues
from agentlink.broker.lease import DELAYED_PREFIX, Lease
from agentlink.broker.limits import Limit
from agentlink.broker.transport import Channel
from tasks import app
from tests.chaos import ledger
from tests.chaos.ledger import Attempt
from tests.integration import limited, sample
from tests.integration.conftest import running_system
from tests.integration.system import System, Worker
from tests.waiting import wait_until
from workflows import RunState

LEASE_S = 1.0


def _start_worker(system: System, concurrency: int = 3) -> Worker:
    imports = "tests.integration.sample,tests.integration.limited"
    return system.start_worker(concurrency=concurrency, imports=imports, lease=f"{LEASE_S:g}s")


@pytest.fixture(scope="class")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Two of three processes each, for all tests of a class."""
    with running_system(tmp_path_factory.mktemp("system")) as system:
        _start_worker(system)
        _start_worker(system)
        yield system


def _at_once(attempts: list[Attempt]) -> int:
    """How many ran at once, at most."""
    changes = [(one.started_at, 1) for one in attempts] + [(one.ended_at or 0.0, -1) for one in attempts]
    running = most = 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    return most


def _left(system: System) -> list[str]:
    return [key for pattern in ("agentlink:limit*", "agentlink:places*") for key in system.client.scan_iter(pattern)]


class TestWithTwoWorkers:
    @pytest.fixture
    def system(self, two_workers: System) -> System:
        return two_workers

    def test_no_more_than_may_run_at_once_do_and_each_key_by_itself(self, system: System, path: Path) -> None:
        results = [limited.ask.delay(model, str(path)) for _ in range(10) for model in (1, 2)]
        assert [result.get(timeout=30) for result in results] == [1, 2] * 10
        attempts = ledger.read(path)
        assert {model: len(tries) for model, tries in attempts.items()} == {1: 10, 2: 10}
        assert [_at_once(tries) for tries in attempts.values()] == [2, 2]
        assert _at_once(attempts[1] + attempts[2]) == 4
        assert len({one.worker for tries in attempts.values() for one in tries}) == 2
        wait_until(lambda: not _left(system), what="the last place to be left")

    def test_a_rate_is_kept_and_used(self, system: System, path: Path) -> None:
        results = [limited.paced.delay(str(path)) for _ in range(31)]
        for result in results:
            result.get(timeout=30)
        begun = [one.started_at for one in ledger.read(path)[0]]
        assert len(begun) == 31
        # What is handed out in time may begin a little later, and so be nearer to the next than it was.
        seconds = [later - earlier for earlier, later in zip(begun, begun[limited.RATE_PER_S :], strict=False)]
        assert min(seconds) >= 0.7
        assert 2.7 <= begun[-1] - begun[0] <= 5.0
        assert _at_once(ledger.read(path)[0]) == 1

    def test_steps_of_a_canvas_wait_for_each_other(self, system: System, path: Path) -> None:
        run = limited.one_after_the_other.delay(6, str(path))
        assert run.get(timeout=30) == sum(range(6))
        attempts = ledger.read(path)[0]
        assert len(attempts) == 7
        assert _at_once(attempts) == 1

    def test_a_key_may_be_made_of_what_comes_from_the_step_before(self, system: System, path: Path) -> None:
        assert limited.by_answer.delay(str(path)).get(timeout=30) == 7

    def test_a_run_in_which_a_key_can_not_be_made_fails(self, system: System) -> None:
        run = limited.without_a_key.delay()
        with pytest.raises(Exception, match="the key of a call can't be made of its arguments"):
            run.get(timeout=10)
        assert run.record().state == RunState.FAILED

    def test_another_attempt_waits_for_a_place_like_the_first(self, system: System, path: Path) -> None:
        results = [limited.fails_once.delay(str(path)) for _ in range(5)]
        assert [result.get(timeout=30) for result in results] == [1] * 5
        attempts = ledger.read(path)[0]
        assert len(attempts) == 10
        assert _at_once(attempts) == 1
        assert attempts[-1].started_at - attempts[0].started_at >= 9 / 20 * 0.9

    def test_a_process_that_dies_leaves_its_place(self, system: System, path: Path) -> None:
        mark = path.with_name("mark")
        results = [limited.dies_once.delay(str(path), str(mark)) for _ in range(3)]
        assert [result.get(timeout=30) for result in results] == [0] * 3
        attempts = ledger.read(path)[0]
        assert len(attempts) == 3
        assert _at_once(attempts) == 1


def test_what_waits_takes_no_process_and_is_shown_and_purged(system: System, path: Path) -> None:
    _start_worker(system, concurrency=3)
    go = path.with_name("go")
    results = [limited.held.delay(str(path), str(go)) for _ in range(12)]
    wait_until(lambda: path.read_text().count("start") == 2, what="the first two")
    numbers = [sample.add.delay(number, 1) for number in range(20)]
    assert [number.get(timeout=10) for number in numbers] == list(range(1, 21))
    assert path.read_text().count("start") == 2
    wait_until(lambda: system.in_flight() == 2, what="nothing but those two with the worker")
    assert limits.waiting(system.client) == [{"queue": "cpu", "key": "held", "waiting": 10, "held": 2}]
    assert queues.lengths(system.client, ["cpu"]) == [{"name": "cpu", "waiting": 0, "delayed": 0, "limited": 10}]
    facts = status.collect(system.settings)
    with (console := Console(width=200)).capture() as shown:
        status.show(facts, console)
    assert "queue     cpu: 0 waiting, 10 at a limit" in shown.get()
    assert "limit     held in cpu: 10 waiting, 2 with workers" in shown.get()
    assert app.control.purge() == 10
    go.touch()
    assert [result.get(timeout=20) for result in results[:2]] == [1, 1]
    wait_until(lambda: not _left(system), what="the last place to be left")


def test_a_killed_workers_places_are_free_with_its_lease(system: System, path: Path) -> None:
    go = path.with_name("go")
    dead = _start_worker(system)
    results = [limited.held.delay(str(path), str(go)) for _ in range(6)]
    wait_until(lambda: path.read_text().count("start") == 2, what="the first two")
    _start_worker(system)
    assert path.read_text().count("start") == 2
    dead.kill()
    killed_at = time.monotonic()
    wait_until(lambda: path.read_text().count("start") == 4, what="both again", timeout_s=20)
    assert time.monotonic() - killed_at < 2 * LEASE_S + 1
    attempts = ledger.read(path)[0]
    assert {one.id.partition(":")[0] for one in attempts[:2]} == {one.id.partition(":")[0] for one in attempts[2:]}
    go.touch()
    assert [result.get(timeout=20) for result in results] == [1] * 6
    assert _at_once([one for one in ledger.read(path)[0] if one.ended_at]) == 2
    wait_until(lambda: not _left(system), what="the last place to be left")


def test_a_worker_that_stops_leaves_its_places_to_others(system: System, path: Path) -> None:
    go = path.with_name("go")
    first = _start_worker(system)
    results = [limited.held.delay(str(path), str(go)) for _ in range(5)]
    wait_until(lambda: path.read_text().count("start") == 2, what="the first two")
    first.process.terminate()
    first.wait_for_log("Warm shutdown")
    second = _start_worker(system)
    go.touch()
    assert [result.get(timeout=20) for result in results] == [1] * 5
    workers = [one.worker for one in ledger.read(path)[0]]
    assert workers == [first.name] * 2 + [second.name] * 3


def test_a_revoked_task_that_waits_takes_no_place(system: System, path: Path) -> None:
    _start_worker(system)
    go = path.with_name("go")
    results = [limited.held.delay(str(path), str(go)) for _ in range(5)]
    wait_until(lambda: path.read_text().count("start") == 2, what="the first two")
    results[2].revoke()
    go.touch()
    with pytest.raises(TaskRevokedError):
        results[2].get(timeout=20)
    assert [result.get(timeout=20) for result in results[3:]] == [1, 1]
    assert len(ledger.read(path)[0]) == 4


def test_a_broker_that_is_killed_knows_who_waits(system: System, path: Path) -> None:
    _start_worker(system)
    go = path.with_name("go")
    results = [limited.held.delay(str(path), str(go)) for _ in range(6)]
    wait_until(lambda: path.read_text().count("start") == 2, what="the first two")
    wait_until(lambda: limits.waiting_in(system.client, "cpu") == 4, what="the others to wait")
    system.restart_broker()
    assert limits.waiting_in(system.client, "cpu") == 4
    go.touch()
    assert [result.get(timeout=30) for result in results] == [1] * 6
    assert len(ledger.read(path)[0]) == 6


@pytest.mark.parametrize("what", ["acknowledged", "given back", "nothing", "set apart"])
def test_a_full_broker_still_hands_out_places(system: System, what: str) -> None:
    """Refused, that would keep what has to end for memory to be freed from running."""
    client = redis.Redis(unix_socket_path=str(system.settings.socket_path))
    lease = Lease(partial(redis.Redis, connection_pool=client.connection_pool), length_s=30.0, separator=Channel.sep)
    lease.begin()
    limit = Limit(key="k", most=2 if what == "nothing" else 1, interval_us=1, ahead_us=1000)

    def send(name: str) -> None:
        client.lpush("cpu", limit.marked(json.dumps({"body": name, "headers": {"id": name}}), name, 0))

    def take(wanted: int = 5) -> list[str]:
        taken, _ = lease.exchange(client, ["cpu"], [f"{DELAYED_PREFIX}cpu"], wanted)
        tags.extend(lease.tag(one) for one in taken)
        return [json.loads(one.message)["body"] for one in taken]

    tags: list[str] = []
    for name in "abc":
        send(name)
    assert take() == (["a", "b"] if what == "nothing" else ["a"])
    if what == "nothing":  # a place becomes free in a step of its own
        lease.acknowledge(tags[0])
        take(0)
    if what == "set apart":
        send("d")
    before = client.config_get("maxmemory")["maxmemory"]
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.OutOfMemoryError):
            client.set("anything", 1)
        if what == "acknowledged":
            lease.acknowledge(tags[0])
        elif what == "given back":
            lease.give_back(tags[0])
        taken = take()
    finally:
        client.config_set("maxmemory", before)
    expected = {"acknowledged": ["b"], "given back": ["a"], "nothing": ["c"], "set apart": []}
    assert taken == expected[what]
    assert limits.waiting_in(client, "cpu") == {"acknowledged": 1, "given back": 2, "nothing": 0, "set apart": 3}[what]
    lease.end()
    assert app.control.purge() == {"acknowledged": 2, "given back": 3, "nothing": 2, "set apart": 4}[what]
    assert not _left(system)
