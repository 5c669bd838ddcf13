"""Results too large for the broker: whole for those who ask, a few hundred bytes for the broker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import group
from celery.app.task import Context
from celery.result import AsyncResult

from agentlink.broker.cancelled import RUN_HEADER
from resource_guard.errors import ResultLost
from resource_guard.storage import Storage
from tasks import app
from tests.integration import large, sample
from tests.integration.system import System
from tests.waiting import wait_until
from workflows.store import PLACE_HEADER

MODULES = "tests.integration.sample,tests.integration.large"
LARGE = 100_000


@pytest.fixture(scope="module")
def system(module_system: System) -> System:
    """With one worker for all tests."""
    module_system.start_worker(imports=MODULES)
    return module_system


def _in_broker(system: System, task_id: str) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads(system.client.get(f"celery-task-meta-{task_id}"))
    return meta


@pytest.mark.timeout(180)
def test_a_result_of_200_mb_comes_back_equal_and_never_touches_the_brokers_memory(system: System) -> None:
    """Neither what it keeps nor, at any moment, what it handles: the announcement carries the reference."""
    sample.add.delay(1, 1).get(timeout=30)
    before = system.client.info("memory")
    system.client.config_resetstat()
    call = large.letters.delay(200_000_000)
    assert call.get(timeout=120) == "x" * 200_000_000
    after, stats = system.client.info("memory"), system.client.info("stats")
    assert after["used_memory"] - before["used_memory"] < 1_000_000
    assert after["used_memory_peak"] - before["used_memory_peak"] < 2_000_000
    assert stats["total_net_input_bytes"] + stats["total_net_output_bytes"] < 1_000_000


def test_a_result_that_just_fits_stays_and_one_byte_more_goes(system: System) -> None:
    inline = system.settings.results_inline_bytes
    fits, larger = large.letters.delay(inline - 2), large.letters.delay(inline - 1)  # in JSON it has two quotes
    assert fits.get(timeout=30) == "x" * (inline - 2)
    assert larger.get(timeout=30) == "x" * (inline - 1)
    assert _in_broker(system, fits.id)["result"] == "x" * (inline - 2)
    shown = _in_broker(system, larger.id)["result"]
    assert shown == {"agentlink_stored": shown["agentlink_stored"], "bytes": inline + 1}


def test_a_small_result_that_looks_like_a_reference_is_none(system: System) -> None:
    assert large.looks_like_a_reference.delay().get(timeout=30) == {"agentlink_stored": "0" * 64, "bytes": 7}


def test_a_chord_joins_large_results_and_small_ones(system: System) -> None:
    """Its body gets the values; their references travel to it."""
    members = [large.letters.s(LARGE, "a"), large.letters.s(3, "b"), large.numbers.s(LARGE)]
    joined = (group(members) | large.lengths.s()).apply_async()
    assert joined.get(timeout=30) == [LARGE, 3, LARGE]


def test_what_a_chords_members_leave_for_the_join_is_small(system: System, tmp_path: Path) -> None:
    """Looked at while one member keeps the join waiting."""
    go = tmp_path / "go"
    header = group([large.letters.s(LARGE), sample.wait_for_file.s(str(go))])
    result = (header | sample.ignored.s()).apply_async()
    kept = wait_until(lambda: list(system.client.scan_iter("celery-taskset-meta-*.j")), what="a counted member")
    [member] = system.client.zrange(kept[0], 0, -1)
    go.touch()
    assert len(member) < 300, member[:1000]
    go.touch()
    wait_until(lambda: not system.in_flight() and not system.client.llen("cpu"), what="the chord's end")
    assert result.parent is not None


def test_a_chords_member_counted_late_leaves_a_reference_too(system: System) -> None:
    """As one whose process died between storing its result and being counted: it is delivered again."""
    app.backend.set_chord_size("late", 2)
    member = Context(id="member", root_id="member", group="late", group_index=0, chord={})
    app.backend.complete_chord(member, "SUCCESS", "x" * LARGE)
    [left] = system.client.zrange("celery-taskset-meta-late.j", 0, -1)
    assert len(left) < 300, left[:1000]


def test_a_run_returns_its_large_result(system: System) -> None:
    run = large.gathered.delay(3, LARGE)
    assert run.get(timeout=30) == [LARGE] * 3
    steps = {step.id for step in run.steps()}
    assert {len(AsyncResult(step, app=app).get()) for step in steps} == {LARGE, 3}


def test_a_group_of_large_results_is_read_by_whoever_waits_for_all(system: System) -> None:
    calls = group(large.noise.s(LARGE, seed) for seed in range(4)).apply_async()
    assert calls.get(timeout=30) == [large.noise(LARGE, seed) for seed in range(4)]


def test_a_chain_passes_a_large_result_on(system: System) -> None:
    assert (large.numbers.s(LARGE) | large.length.s()).apply_async().get(timeout=30) == LARGE


def test_a_step_delivered_twice_passes_its_stored_result_on(system: System) -> None:
    """It does not run again; who comes after it gets what is in the file."""
    run = large.gathered.delay(1, LARGE)
    run.get(timeout=30)
    step = run.steps()[0]
    headers = {PLACE_HEADER: step.place, RUN_HEADER: run.id}
    after = large.length.s().set(task_id=uuid4().hex)
    large.letters.apply_async((3,), task_id=step.id, root_id=run.id, headers=headers, link=after)
    assert AsyncResult(after.id, app=app).get(timeout=30) == LARGE
    system.workers[0].wait_for_log(f"task {step.id} has succeeded before; its result stands")
    assert AsyncResult(step.id, app=app).get() == "a" * LARGE


def test_a_callers_own_result_that_is_large_is_kept_in_a_file_too(system: System) -> None:
    """Stored by hand, as some of Celery's own parts do; states and failures stay in the broker whatever their size."""
    backend = app.backend
    backend.store_result("by-hand", ["x" * LARGE], "SUCCESS")
    backend.store_result("progress", "y" * LARGE, "PROGRESS")
    backend.store_result("failed", ValueError("z" * LARGE), "FAILURE")
    assert _in_broker(system, "by-hand")["result"].keys() == {"agentlink_stored", "bytes"}
    assert _in_broker(system, "progress")["result"] == "y" * LARGE
    assert backend.get_result("by-hand") == ["x" * LARGE]
    assert str(backend.get_result("failed")) == "z" * LARGE


def test_equal_results_are_stored_once(system: System) -> None:
    storage = Storage(system.settings.storage_location)
    before = {file.digest for file in storage.files()}
    calls = group(large.noise.s(LARGE, 77) for _ in range(6)).apply_async()
    assert len(set(calls.get(timeout=30))) == 1
    assert len({file.digest for file in storage.files()} - before) == 1


def test_a_lost_file_does_not_hide_that_the_task_succeeded(system: System) -> None:
    """The state is known without it; the value says which task it was of, where it was, and why it may be gone."""
    call = large.noise.delay(LARGE, 5)
    reference = wait_until(lambda: call.ready() and _in_broker(system, call.id)["result"], what="the result")
    path = Path(Storage(system.settings.storage_location).path(reference["agentlink_stored"]))
    path.unlink()
    again = AsyncResult(call.id, app=app)
    assert again.state == "SUCCESS"
    with pytest.raises(ResultLost, match="AGENTLINK_KEEP_RESULTS") as raised:
        again.get(timeout=10)
    assert raised.value.task_id == call.id
    assert raised.value.file == str(path)


def test_the_command_prints_a_large_result(system: System) -> None:
    code = (
        "import sys; sys.argv = ['agentlink', 'run', 'tests.integration.large.gathered', '2', '70000', '--json'];"
        "from agentlink.cli import main; main()"
    )
    shown = system.python(code, imports=MODULES)
    assert json.loads(shown.stdout) == [70000, 70000], shown.stderr
