"""What runs cost the broker, and how soon many of them are listed."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
from celery.exceptions import TaskRevokedError

from tests.integration import fanning, sample
from tests.integration.system import System
from tests.waiting import wait_until
from workflows import RunState, store
from workflows.store import INDEX_KEY, run_key

RUNS = 100_000
PAGE = 50
#: Makes runs as they are recorded, one failed among a hundred; KEYS[1] is their index, ARGV their number and time.
MAKE = """
for number = 1, tonumber(ARGV[1]) do
    local id = string.format('run-%06d', number)
    local state = number % 100 == 0 and 'FAILED' or 'SUCCEEDED'
    redis.call('HSET', 'agentlink:run:' .. id, 'workflow', 'w', 'arguments', '', 'state', state, 'called_at', number,
        'steps_total', 1, 'steps_done', 1, 'parent_id', '', 'root_id', id)
    redis.call('EXPIRE', 'agentlink:run:' .. id, 600)
    redis.call('ZADD', KEYS[1], number, id)
    redis.call('ZADD', KEYS[1] .. ':' .. state, number, id)
end
"""
#: At most so many bytes a step, besides its result: 10,000 of them take 4 MB.
STEP_BYTES = 400
STEPS = 1_000


def test_a_page_of_a_hundred_thousand_runs_takes_milliseconds(system: System) -> None:
    """Wherever it is, and also of a state that few have: compared with what as many round trips would take."""
    client = system.client
    client.eval(MAKE, 1, INDEX_KEY, RUNS)
    store.latest_runs(client, PAGE)  # the server comes to itself after that
    pages: list[tuple[int, RunState | None, str]] = [
        (0, None, f"run-{RUNS:06d}"),
        (RUNS - PAGE, None, f"run-{PAGE:06d}"),
        (500, RunState.FAILED, f"run-{RUNS - 500 * 100:06d}"),
    ]
    for skip, state, first in pages:
        began_at = time.perf_counter()
        for _ in range(PAGE):
            client.ping()
        round_trips_s = time.perf_counter() - began_at
        began_at = time.perf_counter()
        found = store.latest_runs(client, PAGE, skip=skip, state=state)
        took_s = time.perf_counter() - began_at
        assert (len(found), found[0].id) == (PAGE, first)
        assert took_s < max(0.05, 3 * round_trips_s)
    assert store.count_runs(client)[RunState.FAILED] == RUNS // 100


def test_a_run_is_compact(system: System) -> None:
    system.start_worker(imports="tests.integration.sample,tests.integration.fanning")
    run = fanning.wide.delay(STEPS)
    run.get(timeout=40)
    used_bytes = sum(system.client.memory_usage(key) or 0 for key in system.client.scan_iter(f"{run_key(run.id)}*"))
    assert used_bytes <= STEPS * STEP_BYTES


class TestCallOptions:
    """What Celery's calls take, calls of workflows take too."""

    def test_a_run_may_begin_later(self, system: System) -> None:
        system.start_worker()
        began_at = time.monotonic()
        runs = [
            sample.sums.apply_async((1,), countdown=1),
            sample.sums.apply_async((1,), eta=datetime.now(tz=UTC) + timedelta(seconds=1)),
        ]
        assert {run.progress.state for run in runs} == {RunState.QUEUED}
        assert [run.get(timeout=20) for run in runs] == [1001, 1001]
        assert time.monotonic() - began_at >= 0.9

    def test_a_run_that_has_expired_does_not_begin(self, system: System) -> None:
        run = sample.sums.apply_async((1,), expires=0.2)
        time.sleep(0.3)  # it is to be too late
        system.start_worker()
        with pytest.raises(TaskRevokedError):
            run.get(timeout=20)
        assert run.progress.state is RunState.CANCELLED

    def test_an_urgent_run_begins_first(self, system: System) -> None:
        slow, urgent = sample.sums.apply_async((1,), priority=0), sample.sums.apply_async((1,), priority=9)
        system.start_worker(concurrency=1)
        assert [run.get(timeout=20) for run in (slow, urgent)] == [1001, 1001]
        first, second = (run.record().started_at or 0.0 for run in (urgent, slow))
        assert first < second

    def test_what_is_linked_gets_the_answer_or_the_failure(self, system: System) -> None:
        system.start_worker()
        path = system.folder / "linked"
        run = sample.sums.apply_async((1,), link=sample.note.si(str(path)))
        run.get(timeout=20)
        wait_until(path.exists, what="the callback")
        failed = system.folder / "failed"
        sample.one_fails.apply_async(("no good",), link_error=sample.note.si(str(failed)))
        wait_until(failed.exists, what="the error callback")
        assert (path.read_text().count("\n"), failed.read_text().count("\n")) == (1, 1)
