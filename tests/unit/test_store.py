"""What the run store makes of a run's changes of state."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import fakeredis
import pytest

from tests.integration import sample
from tests.unit.recording import record
from workflows import RunState, RunUnknown, StepState, recording, store
from workflows.store import StepRecord

RUN = "run-1"


@pytest.fixture
def client() -> fakeredis.FakeRedis:
    client = fakeredis.FakeRedis(server_type="valkey")
    _do(client, recording.creation_commands(RUN, "tests.sums", "3", None))
    return client


def _do(client: fakeredis.FakeRedis, commands: Any) -> None:
    record(client, commands)


def _request(
    task: str = "tests.add",
    place: str | None = "0",
    root: str = RUN,
    retries: int = 0,
    parent: str | None = None,
    replacements: int = 0,
) -> Any:
    return SimpleNamespace(
        task=task,
        root_id=root,
        retries=retries,
        hostname="w@h",
        agentlink_place=place,
        parent_id=parent,
        replaced_task_nesting=replacements,
    )


def _change(client: fakeredis.FakeRedis, task_id: str, state: str, result: Any = None, request: Any = None) -> None:
    _do(client, recording.transition_commands(task_id, state, result, None, request))


def _plan(client: fakeredis.FakeRedis, *step_ids: str) -> None:
    recording.record_plan(
        client,
        RUN,
        [],
        [StepRecord(id=i, name="tests.add", place=str(n), state=StepState.WAITING) for n, i in enumerate(step_ids)],
    )


def _states(client: fakeredis.FakeRedis) -> dict[str, StepState]:
    return {step.id: step.state for step in store.read_steps(client, RUN)}


def test_a_new_run_is_queued_and_listed_first(client: fakeredis.FakeRedis) -> None:
    _do(client, recording.creation_commands("run-2", "tests.sums", "4", RUN))
    run = store.read_run(client, "run-2")
    assert (run.state, run.workflow, run.arguments, run.parent_id) == (RunState.QUEUED, "tests.sums", "4", RUN)
    assert [run.id for run in store.latest_runs(client, 10)] == ["run-2", RUN]
    assert [run.id for run in store.latest_runs(client, 1)] == ["run-2"]


def test_a_run_that_never_was_is_an_error_that_says_so(client: fakeredis.FakeRedis) -> None:
    with pytest.raises(RunUnknown, match="no run 'nothing' is known"):
        store.read_run(client, "nothing")


def test_a_run_goes_from_queued_to_succeeded(client: fakeredis.FakeRedis) -> None:
    build = _request(task=sample.sums.name, place=None)
    _change(client, RUN, "STARTED", request=build)
    assert store.read_run(client, RUN).state is RunState.RUNNING
    _plan(client, "a", RUN)
    _change(client, "a", "STARTED", request=_request(place="0"))
    assert [step.state for step in store.read_steps(client, RUN)] == [StepState.RUNNING, StepState.WAITING]
    _change(client, "a", "SUCCESS", request=_request(place="0"))
    assert store.read_run(client, RUN).steps_done == 1
    last = _request(place="1")
    _change(client, RUN, "STARTED", request=last)
    _change(client, RUN, "SUCCESS", request=last)
    run = store.read_run(client, RUN)
    assert (run.state, run.steps_done, run.steps_total) == (RunState.SUCCEEDED, 2, 2)
    assert run.started_at is not None
    assert run.ended_at is not None
    assert run.called_at <= run.started_at <= run.ended_at


def test_a_planned_step_that_starts_tells_that_the_one_before_has_succeeded(client: fakeredis.FakeRedis) -> None:
    """Celery sends the next step its message before it stores the result: the run may end before that is done."""
    _plan(client, "a", RUN)
    _change(client, "a", "STARTED", request=_request(place="0"))
    last = _request(place="1", parent="a")
    _change(client, RUN, "STARTED", request=last)
    _change(client, RUN, "SUCCESS", request=last)
    assert [step.state for step in store.read_steps(client, RUN)] == [StepState.SUCCEEDED, StepState.SUCCEEDED]
    _change(client, "a", "SUCCESS", request=_request(place="0"))
    assert store.read_run(client, RUN).steps_done == 2


def test_a_task_that_a_running_step_calls_tells_nothing_of_it(client: fakeredis.FakeRedis) -> None:
    _plan(client, "a", RUN)
    _change(client, "a", "STARTED", request=_request(place="0"))
    _change(client, "called", "STARTED", request=_request(place=None, parent="a"))
    assert store.read_steps(client, RUN)[0].state is StepState.RUNNING


def test_a_step_that_replaced_itself_goes_on_until_the_last_of_its_replacement_ends(
    client: fakeredis.FakeRedis,
) -> None:
    _plan(client, RUN)
    _change(client, RUN, "STARTED", request=_request(place="0"))
    first = _request(place=None, parent=RUN, replacements=1)
    _change(client, "first", "STARTED", request=first)
    assert {step.state for step in store.read_steps(client, RUN)} == {StepState.RUNNING}
    last = _request(place=None, parent="first", replacements=1)
    _change(client, RUN, "STARTED", request=last)
    assert _states(client) == {RUN: StepState.RUNNING, "first": StepState.SUCCEEDED}
    _change(client, RUN, "SUCCESS", request=last)
    run = store.read_run(client, RUN)
    assert (run.state, run.steps_done, run.steps_total) == (RunState.SUCCEEDED, 2, 2)
    _change(client, "first", "SUCCESS", request=first)
    assert store.read_run(client, RUN).steps_done == 2


def test_the_only_task_of_a_replacement_does_not_end_itself_by_starting(client: fakeredis.FakeRedis) -> None:
    _plan(client, RUN)
    _change(client, RUN, "STARTED", request=_request(place="0"))
    for _ in range(2):
        _change(client, RUN, "STARTED", request=_request(place=None, parent=RUN, replacements=1))
    assert _states(client) == {RUN: StepState.RUNNING}


def test_a_step_counts_once_however_often_it_is_delivered(client: fakeredis.FakeRedis) -> None:
    _plan(client, "a", RUN)
    for _ in range(2):
        for state in ("STARTED", "SUCCESS"):
            _change(client, "a", state, request=_request())
    assert store.read_run(client, RUN).steps_done == 1


def test_a_step_that_succeeded_never_goes_back(client: fakeredis.FakeRedis) -> None:
    _plan(client, "a", RUN)
    _change(client, "a", "SUCCESS", request=_request())
    for state in ("STARTED", "RETRY", "FAILURE", "REVOKED"):
        _change(client, "a", state, {"exc_type": "E", "exc_message": ["late"]}, request=_request())
    assert store.read_steps(client, RUN)[0].state is StepState.SUCCEEDED
    assert store.read_run(client, RUN).state is RunState.QUEUED


def test_planning_again_changes_nothing(client: fakeredis.FakeRedis) -> None:
    _plan(client, "a", RUN)
    _change(client, "a", "SUCCESS", request=_request())
    _plan(client, "a", RUN)
    assert [step.state for step in store.read_steps(client, RUN)] == [StepState.SUCCEEDED, StepState.WAITING]
    assert store.read_run(client, RUN).steps_total == 2


def test_the_first_step_to_fail_fails_the_run_and_is_kept(client: fakeredis.FakeRedis) -> None:
    _plan(client, "a", "b", RUN)
    for step in ("a", "b"):
        error = {"exc_type": "ValueError", "exc_message": [f"{step} broke"]}
        _change(client, step, "FAILURE", error, request=_request())
    _change(client, RUN, "FAILURE", {"exc_type": "ChordError", "exc_message": ["Dependency"]})
    run = store.read_run(client, RUN)
    assert run.state is RunState.FAILED
    assert run.failure is not None
    assert (run.failure["step_id"], run.failure["error"]) == ("a", "ValueError: a broke")


def test_a_retried_step_keeps_its_error_and_counts_its_attempts(client: fakeredis.FakeRedis) -> None:
    _plan(client, "a", RUN)
    _change(client, "a", "RETRY", {"exc_type": "OSError", "exc_message": ["flaky"]}, request=_request())
    step = store.read_steps(client, RUN)[0]
    assert (step.state, step.error, step.attempt) == (StepState.RETRYING, "OSError: flaky", 1)
    _change(client, "a", "STARTED", request=_request(retries=1))
    assert store.read_steps(client, RUN)[0].attempt == 2


def test_a_step_added_while_the_run_goes_on_joins_it(client: fakeredis.FakeRedis) -> None:
    _plan(client, "a", RUN)
    _change(client, "new", "SUCCESS", request=_request(place=None))
    run = store.read_run(client, RUN)
    assert (run.steps_total, run.steps_done) == (3, 1)


def test_tasks_outside_any_run_are_left_alone(client: fakeredis.FakeRedis) -> None:
    """Not even a command is sent for a task that nobody planned and nobody started a run with."""
    assert list(recording.transition_commands("x", "SUCCESS", 1, None, _request(root="x", place=None))) == []
    _change(client, "x", "SUCCESS", request=_request(root="gone"))
    assert not client.exists(store.run_key("gone"), store.steps_key("gone"))


def test_everything_but_the_list_of_runs_expires(client: fakeredis.FakeRedis) -> None:
    _plan(client, "a", RUN)
    _change(client, "a", "STARTED", request=_request())
    permanent = {key.decode() for key in client.scan_iter() if client.ttl(key) == -1}
    assert permanent == {store.INDEX_KEY, f"{store.INDEX_KEY}:QUEUED"}


def test_the_list_of_runs_is_capped(client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    capped = recording.load().model_copy(update={"keep_runs": 5})
    monkeypatch.setattr(recording, "load", lambda: capped)
    for number in range(20):
        _do(client, recording.creation_commands(f"n{number}", "tests.sums", "", None))
    assert client.zcard(store.INDEX_KEY) == 5
    assert store.latest_runs(client, 1)[0].id == "n19"


def test_the_list_of_those_that_no_worker_takes_is_capped_too(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    capped = recording.load().model_copy(update={"keep_runs": 5})
    monkeypatch.setattr(recording, "load", lambda: capped)
    for number in range(20):
        _do(client, recording.creation_commands(f"n{number}", "tests.sums", "", None))
    assert client.zcard(f"{store.INDEX_KEY}:QUEUED") == 5
    now = recording.time.time()
    monkeypatch.setattr(recording.time, "time", lambda: now + store.goes_on_ttl_s() + 1)
    _do(client, recording.creation_commands("later", "tests.sums", "", None))
    assert store.how_many_runs(client, RunState.QUEUED) == 1
