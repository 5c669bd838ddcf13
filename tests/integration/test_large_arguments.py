"""Arguments too large for messages: stored once, small on the way, whole where they are used."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import chain, chord

from agentlink.broker import dead_letters
from agentlink.broker.arguments import ARGUMENTS_HEADER, RUNS_PREFIX, WAITS_PREFIX
from agentlink.broker.sweep_step import lookups
from agentlink.broker.sweeping import Sweeper
from resource_guard.errors import ArgumentLost
from resource_guard.storage import Storage
from tasks.errors import ProcessDied
from tests.integration import claims, large, sample
from tests.integration.system import System
from tests.small_disk import filled_disk
from tests.waiting import wait_until
from workflows import RunState

MODULES = "tests.integration.sample,tests.integration.large,tests.integration.claims"
MEGABYTE = 1_000_000
DAY = 86400.0
TEXT = large.noise(MEGABYTE)


@pytest.fixture
def storage(system: System) -> Storage:
    """Where this system keeps large values; empty."""
    storage = Storage(system.settings.storage_location)
    for file in storage.files():
        storage.remove(file)
    return storage


def _digest(value: Any, more: Any = None) -> str:
    return hashlib.sha256(repr((value, more)).encode()).hexdigest()


def _messages(system: System, queue: str = "cpu") -> list[str]:
    """All that waits in a queue, also in the lists of runs, and for its time."""
    lists = [key for key in system.client.scan_iter(f"{queue}*") if system.client.type(key) == "list"]
    waiting = [one for key in lists for one in system.client.lrange(key, 0, -1) if one.startswith("{")]
    return waiting + system.client.zrange(f"agentlink:delayed:{queue}", 0, -1)


def _used_bytes(system: System) -> int:
    used: int = system.client.info("memory")["used_memory"]
    return used


def _sweep(system: System, now: float) -> int:
    client = redis.Redis(unix_socket_path=str(system.settings.socket_path))
    return Sweeper(system.settings, lambda: client, lookups).sweep(now).expired


@pytest.mark.timeout(120)
def test_three_hundred_steps_that_share_a_megabyte_take_little_of_the_broker(system: System, storage: Storage) -> None:
    """Called from outside: 400 MB of messages before."""
    corpus = list(range(150_000))
    used_bytes = _used_bytes(system)
    joined = chord([claims.digest.s(corpus, number) for number in range(300)], claims.pair.s(corpus)).apply_async()
    assert _used_bytes(system) - used_bytes < 20_000_000
    assert len(_messages(system)) == 300
    assert max(map(len, _messages(system))) < 4_000
    assert len(storage.files()) == 1
    system.start_worker(imports=MODULES)
    assert joined.get(timeout=60) == [300, 150_000]


@pytest.mark.timeout(120)
def test_a_run_whose_steps_share_its_argument_stores_it_once(system: System, storage: Storage) -> None:
    run = claims.shared.delay(TEXT, 300)
    assert max(map(len, _messages(system))) < 4_000
    peak_bytes = system.client.info("memory")["used_memory_peak"]
    system.start_worker(imports=MODULES)
    assert run.get(timeout=60) == 300
    assert system.client.info("memory")["used_memory_peak"] - peak_bytes < 20_000_000
    assert len(storage.files()) == 1


@pytest.mark.timeout(120)
def test_two_thousand_steps_that_share_a_large_list_cost_their_sender_little_more_than_with_a_small_one(
    system: System, storage: Storage
) -> None:
    """In time and in memory: it is neither copied nor made JSON of for each."""
    code = (
        "import resource, time\n"
        "from celery import chord\n"
        "from tests.integration import claims, large\n"
        "for values in ([1], list(range(300_000))):\n"
        "    begun = time.process_time()\n"
        "    chord([claims.digest.s(values, number) for number in range(2_000)], large.length.s()).apply_async()\n"
        "    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    print(time.process_time() - begun, peak)\n"
    )
    done = system.python(code, imports=MODULES)
    (small_s, small_kb), (large_s, large_kb) = (map(float, line.split()) for line in done.stdout.splitlines())
    assert large_s < small_s + 1.0, done
    assert large_kb < small_kb + 60_000, done
    assert len(_messages(system)) == 4_000


@pytest.mark.timeout(120)
def test_each_step_gets_the_value_and_one_of_its_own(system: System, storage: Storage) -> None:
    system.start_worker(imports=MODULES, concurrency=1)
    numbers = list(range(100_000))
    calls = [claims.append_to.delay(numbers, 1) for _ in range(3)]
    calls.append(claims.append_to.apply_async((numbers,), {"number": 2}))
    assert [call.get(timeout=30) for call in calls] == [100_001] * 4
    by_name = claims.digest.apply_async((TEXT,), {"number": 4, "more": {"text": TEXT}})
    assert by_name.get(timeout=30) == [_digest(TEXT, {"text": TEXT}), 4]


@pytest.mark.parametrize("in_run", [False, True], ids=["plain", "run"])
def test_a_chain_hands_a_large_result_on_as_its_reference(system: System, storage: Storage, in_run: bool) -> None:
    """The file is written once, and is the result's and the argument's."""
    system.start_worker("--queues", "cpu", imports=MODULES)
    if in_run:
        call: Any = claims.passed_to_a_queue.delay(5 * MEGABYTE, "later")
    else:
        call = chain(large.noise.s(5 * MEGABYTE), claims.digest.s().set(queue="later")).apply_async()
    [message] = wait_until(lambda: _messages(system, "later"), what="the second step")
    assert len(message) < 4_000
    [file] = storage.files()
    assert json.loads(message)["headers"][ARGUMENTS_HEADER] == [file.digest]
    first_id = json.loads(message)["headers"]["parent_id"]
    wait_until(lambda: system.client.exists(f"celery-task-meta-{first_id}"), what="the first step's result")
    stored = json.loads(system.client.get(f"celery-task-meta-{first_id}"))["result"]
    if not in_run:
        assert stored == {"agentlink_stored": file.digest, "bytes": 5 * MEGABYTE + 2}
    system.start_worker("--queues", "later", imports=MODULES)
    assert call.get(timeout=30) == [_digest(large.noise(5 * MEGABYTE)), 0]
    assert [one.written_at for one in storage.files()] == [file.written_at]


def test_a_large_list_of_large_texts_is_whole_for_the_next_and_for_those_who_ask(
    system: System, storage: Storage
) -> None:
    system.start_worker(imports=MODULES)
    call = chain(claims.texts.s(MEGABYTE), claims.digest.s()).apply_async()
    value = claims.texts(MEGABYTE)
    assert call.get(timeout=30) == [_digest(value), 0]
    assert call.parent.get(timeout=30) == value
    assert len(storage.files()) == 1


def test_a_chord_hands_large_results_on_as_references(system: System, storage: Storage) -> None:
    system.start_worker("--queues", "cpu", imports=MODULES)
    members = [large.noise.s(MEGABYTE, 1), large.noise.s(4), large.noise.s(MEGABYTE, 2)]
    joined = chord(members, claims.shape.s().set(queue="later")).apply_async()
    [message] = wait_until(lambda: _messages(system, "later"), what="the body")
    written_at = {file.digest: file.written_at for file in storage.files()}
    assert len(message) < 4_000
    assert set(json.loads(message)["headers"][ARGUMENTS_HEADER]) == written_at.keys()
    system.start_worker("--queues", "later", imports=MODULES)
    assert joined.get(timeout=30) == [MEGABYTE, 4, MEGABYTE]
    assert {file.digest: file.written_at for file in storage.files()} == written_at


def test_groups_within_a_chord_are_joined_too(system: System, storage: Storage) -> None:
    system.start_worker(imports=MODULES)
    run = claims.groups_in_a_chord.delay(MEGABYTE)
    assert sorted(run.get(timeout=30)) == [4, MEGABYTE, MEGABYTE, MEGABYTE]
    written_at = {file.digest: file.written_at for file in storage.files()}
    inner = chord([large.noise.si(4), large.noise.si(4)], large.noise.si(MEGABYTE, 4))
    outer = chord([inner, large.noise.s(MEGABYTE, 1)], claims.shape.s())
    assert outer.apply_async().get(timeout=30) == [MEGABYTE, MEGABYTE]
    assert len(storage.files()) == len(written_at) + 1


def test_what_comes_after_a_step_travels_small_too(system: System, storage: Storage) -> None:
    """A chain's later steps and a chord's body lie in each message before them."""
    body = claims.pair.s(TEXT)
    call = chain(sample.add.s(1, 1), chord([sample.add.s(n) for n in range(20)], body), claims.pair.si(TEXT, TEXT))
    result = call.apply_async()
    assert max(map(len, _messages(system))) < 40_000
    system.start_worker(imports=MODULES)
    assert result.get(timeout=30) == [MEGABYTE, MEGABYTE]


def test_a_retry_carries_the_reference(system: System, storage: Storage) -> None:
    """And the request, which logs and events show, has it too."""
    system.start_worker(imports=MODULES)
    call = claims.second_time.delay(TEXT, 1.5)
    [waiting] = wait_until(lambda: system.client.zrange("agentlink:delayed:cpu", 0, -1), what="the retry")
    assert len(waiting) < 4_000
    length, shown = call.get(timeout=30)
    assert length == MEGABYTE
    assert len(shown) < 200
    assert len(storage.files()) == 1
    assert not system.client.exists(WAITS_PREFIX + call.id)


def test_a_replacement_passes_it_on(system: System, storage: Storage) -> None:
    system.start_worker(imports=MODULES)
    assert claims.hand_on.delay(TEXT).get(timeout=30) == 3
    assert len(storage.files()) == 1


def test_a_step_whose_process_is_killed_runs_again_with_it(system: System, storage: Storage, path: Path) -> None:
    system.start_worker(imports=MODULES)
    assert claims.killed_once.delay(TEXT, str(path)).get(timeout=30) == MEGABYTE
    assert len(set(path.read_text().splitlines())) == 2


def test_a_dead_letter_is_small_and_keeps_what_it_refers_to(system: System, storage: Storage) -> None:
    """For as long as it is kept itself; sent again, it has its argument."""
    system.start_worker(imports=MODULES)
    cure = system.folder / "cure"
    call = claims.die_with.delay(TEXT, str(cure))
    with pytest.raises(ProcessDied):
        call.get(timeout=30)
    [letter] = dead_letters.find(system.client)
    assert len(system.client.hget(dead_letters.MESSAGES_KEY, letter.id)) < 4_000
    assert _sweep(system, time.time() + 20 * DAY) == 0
    cure.touch()
    dead_letters.send_again(system.client, [letter])
    wait_until(lambda: call.backend.client.exists(f"celery-task-meta-{call.id}"), what="the result")
    again = type(call)(call.id, app=call.app)
    wait_until(lambda: again.state == "SUCCESS", what="the second time")
    wait_until(lambda: _sweep(system, time.time() + 20 * DAY) == 1, what="the removal of the file")


def test_a_missing_file_fails_the_step_and_its_run(system: System, storage: Storage) -> None:
    """With which task it was, where the file was, and what may be the reason."""
    run = claims.passed_to_a_queue.delay(MEGABYTE, "later")
    system.start_worker("--queues", "cpu", imports=MODULES)
    wait_until(lambda: _messages(system, "later"), what="the second step")
    [file] = storage.files()
    Path(storage.path(file.digest)).unlink()
    system.start_worker("--queues", "later", imports=MODULES)
    with pytest.raises(ArgumentLost, match="AGENTLINK_STORAGE") as lost:
        run.get(timeout=30)
    assert lost.value.file == storage.path(file.digest)
    assert lost.value.task_id == run.id
    assert run.progress.state is RunState.FAILED


def test_what_a_run_that_goes_on_refers_to_stays_and_goes_later(system: System, storage: Storage) -> None:
    go = system.folder / "go"
    run = claims.shared_when_there.delay(TEXT, str(go))
    later = time.time() + 30 * DAY
    assert _sweep(system, later) == 0  # the message that starts it waits
    system.start_worker(imports=MODULES)
    wait_until(lambda: len(run.steps()) == 2, what="the run's steps")
    assert _sweep(system, later) == 0
    [file] = storage.files()
    assert system.client.smembers(RUNS_PREFIX + file.digest) == {run.id}
    go.touch()
    run.get(timeout=30)
    assert _sweep(system, later) == 1


def test_what_a_task_outside_any_run_refers_to_stays_until_that_has_ended(system: System, storage: Storage) -> None:
    call = claims.digest.delay(TEXT)
    later = time.time() + 30 * DAY
    assert _sweep(system, later) == 0
    assert system.client.ttl(WAITS_PREFIX + call.id) > 7 * DAY
    delayed = claims.digest.apply_async((TEXT + "y",), countdown=50 * DAY)
    assert system.client.ttl(WAITS_PREFIX + delayed.id) > 60 * DAY
    system.start_worker(imports=MODULES)
    call.get(timeout=30)
    assert _sweep(system, later) == 1
    system.client.delete("agentlink:delayed:cpu")


@pytest.mark.timeout(60)
def test_chords_in_chords_in_chords_wait_for_nothing(system: System) -> None:
    """2,500 innermost ones, sent from a worker's only process by the step that builds them."""
    system.start_worker(imports=MODULES, concurrency=1)
    run = claims.nested.delay(3)
    assert run.get(timeout=20) == 18
    run = claims.nested.delay(50)
    begun = time.monotonic()
    wait_until(lambda: len(_messages(system)) + system.in_flight() > 2_000, what="the first messages", timeout_s=30)
    assert time.monotonic() - begun < 30


def test_canvases_within_each_other_take_one_connection(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve levels deep, where a process has ten connections."""
    canvas: Any = sample.add.s(0, 0)
    for _ in range(12):
        canvas = chord([canvas], sample.total.s())
    begun = time.monotonic()
    call = canvas.apply_async()
    assert time.monotonic() - begun < 2
    system.start_worker(imports=MODULES)
    assert call.get(timeout=30) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 4 MB, full but for a little."""
    with filled_disk(tmp_path / "disk", 4, 3_900_000) as disk:
        yield disk


def test_on_a_full_disk_a_call_is_refused_and_nothing_of_it_is_queued(system: System, small_disk: Path) -> None:
    """Neither one call nor any of a group; a small one is taken."""
    code = (
        "from celery import group\n"
        "from agentlink.broker.errors import ArgumentNotStored\n"
        "from tests.integration import claims, large\n"
        "value = large.noise(1_000_000)\n"
        "for call in (claims.digest.s(value), group([claims.digest.s(1), claims.digest.s(value)])):\n"
        "    try:\n"
        "        call.apply_async()\n"
        "    except ArgumentNotStored as error:\n"
        "        print(error)\n"
        "claims.digest.delay('small')\n"
    )
    done = system.python(code, imports=MODULES, storage=str(small_disk / "results"))
    assert done.stdout.count("could not be stored, and nothing was sent: there is no room for a large value") == 2, done
    [message] = _messages(system)
    assert base64.b64decode(json.loads(message)["body"]).startswith(b'[["small"]')
    system.client.flushall()
    assert [one for one in (small_disk / "results").rglob("*") if one.is_file()] == []
