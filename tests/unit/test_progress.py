"""How a run's progress is weighed, and what is expected of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import fakeredis
import pytest

from agentlink.broker import profiles
from agentlink.broker.streams import EMIT, RUN_PREFIX, Said, Speaker, item, told_key
from agentlink.broker.streams import tell as tell_broker
from resource_guard.caps import Used
from tests.integration import sample
from tests.unit.recording import record
from workflows import RunState, StepState, WorkflowRun, durations, ending, recording, steering
from workflows.progress import Told, progress_of, read_told
from workflows.store import RunRecord, StepRecord
from workflows.streams import said_so_far


def _run(state: RunState = RunState.RUNNING, workflow: str = "w") -> RunRecord:
    return RunRecord(
        id="r", workflow=workflow, arguments="", state=state, called_at=0, started_at=0, ended_at=None, steps_total=0,
        steps_done=0, parent_id=None, failure=None, root_id="r", agent=None, tags=(),
    )  # fmt: skip


def _steps(*states: tuple[str, StepState]) -> list[StepRecord]:
    return [StepRecord(id=str(n), name=name, place=str(n), state=state) for n, (name, state) in enumerate(states)]


def _told(fraction: float, message: str | None = None, at: float = 1.0, top: float = 0.0) -> Told:
    return Told(fraction=fraction, top=max(top, fraction), message=message, at=at)


DONE, RUNS, WAITS = StepState.SUCCEEDED, StepState.RUNNING, StepState.WAITING


@pytest.mark.parametrize(
    ("steps", "told", "expected_s", "fraction"),
    [
        ([], {}, {}, 0.0),
        ([("a", DONE), ("a", WAITS)], {}, {}, 0.5),
        ([("long", DONE), ("short", WAITS)], {}, {"long": 9.0, "short": 1.0}, 0.9),
        ([("long", RUNS), ("short", WAITS)], {"0": 0.5}, {"long": 9.0, "short": 1.0}, 0.45),
        # what nobody knows weighs as much as what is known on average
        ([("long", DONE), ("short", WAITS), ("new", WAITS)], {}, {"long": 9.0, "short": 1.0}, 0.6),
        ([("new", DONE), ("other", WAITS)], {}, {}, 0.5),
        # no time at all is some time
        ([("a", DONE), ("b", WAITS)], {}, {"a": 0.0, "b": 0.0}, 0.5),
        # all steps have ended, and the run has not succeeded
        ([("a", DONE), ("a", StepState.FAILED)], {}, {}, 0.999),
        ([("a", RUNS)], {"0": 1.0}, {}, 0.999),
        # what a step told before it ended says nothing more
        ([("a", DONE), ("a", WAITS)], {"0": 0.1}, {}, 0.5),
    ],
)
def test_steps_weigh_the_time_they_are_expected_to_take(
    steps: Any, told: dict[str, float], expected_s: dict[str, float], fraction: float
) -> None:
    progress = progress_of(_run(), _steps(*steps), {id_: _told(done) for id_, done in told.items()}, expected_s)
    assert progress.fraction == pytest.approx(fraction)


def test_only_success_is_all_of_it() -> None:
    steps = _steps(("a", DONE))
    assert progress_of(_run(RunState.SUCCEEDED), steps, {}, {}).fraction == 1.0
    assert progress_of(_run(RunState.FAILED), steps, {}, {}).fraction < 1.0


def test_a_step_that_begins_again_takes_nothing_back() -> None:
    steps = _steps(("a", RUNS), ("a", WAITS))
    assert progress_of(_run(), steps, {"0": _told(0.1, top=0.8)}, {}).fraction == pytest.approx(0.4)


def test_steps_that_are_added_take_nothing_back() -> None:
    assert progress_of(_run(), _steps(("a", DONE), ("a", WAITS), ("a", WAITS)), {}, {}, 0.5).fraction == 0.5


def test_the_time_left_is_what_earlier_runs_took_for_what_is_not_done() -> None:
    steps = _steps(("a", DONE), ("a", WAITS), ("a", WAITS), ("a", WAITS))
    assert progress_of(_run(), steps, {}, {"w": 60.0}).left_s == pytest.approx(45.0)
    assert progress_of(_run(), steps, {}, {"a": 60.0}).left_s is None
    assert progress_of(_run(RunState.FAILED), steps, {}, {}).left_s == 0.0


def test_the_message_is_the_one_that_came_last() -> None:
    told = {"0": _told(0.9, "early", at=1.0), "1": _told(0.1, "late", at=2.0), "2": _told(0.1, None, at=3.0)}
    assert progress_of(_run(), _steps(("a", RUNS), ("a", RUNS), ("a", RUNS)), told, {}).message == "late"
    assert progress_of(_run(), [], {}, {}).message is None


# -- what is kept of earlier runs


@pytest.fixture
def client() -> fakeredis.FakeRedis:
    return fakeredis.FakeRedis(server_type="valkey")


def _request(task: str, **facts: Any) -> Any:
    class Request:
        root_id = "run"
        retries = 0
        hostname = None
        parent_id = None
        replaced_task_nesting = 0

    Request.task = task  # type: ignore[attr-defined]
    for name, value in facts.items():
        setattr(Request, name, value)
    return Request()


def _do(client: fakeredis.FakeRedis, commands: Any) -> int:
    commands = list(commands)
    record(client, commands)
    return len(commands)


def _end(client: fakeredis.FakeRedis, task_id: str, state: str, request: Any) -> int:
    _do(client, recording.transition_commands(task_id, state, None, None, request))
    return _do(client, durations.end_commands(task_id, state, None, None, request))


def _started_run(client: fakeredis.FakeRedis, run_id: str = "run", parent: str | None = None) -> None:
    _do(client, recording.creation_commands(run_id, "tests.flow", "", parent, "run"))
    client.hset(RUN_PREFIX + run_id, mapping={"state": "RUNNING", "started_at": "1.5"})
    client.hset(told_key(run_id), "0", "{}")
    client.xadd(f"{RUN_PREFIX}{run_id}:stream", {"step": "0", "task": "t", "attempt": "1", "items": "[]"})


def _ends(client: fakeredis.FakeRedis, run_id: str) -> list[bytes]:
    return [fields[b"end"] for _, fields in client.xrange(f"{RUN_PREFIX}{run_id}:stream") if b"end" in fields]


def test_a_run_that_succeeds_wakes_its_readers_and_its_duration_is_kept(client: fakeredis.FakeRedis) -> None:
    _started_run(client)
    request = _request("tests.add", agentlink_run="run", agentlink_place="0")
    assert _end(client, "run", "SUCCESS", request) == 1
    assert _ends(client, "run") == [b"SUCCEEDED"]
    assert client.llen(durations.DURATIONS_PREFIX + "tests.flow") == 1
    ttls = [client.ttl(key) for key in (RUN_PREFIX + "run", told_key("run"), f"{RUN_PREFIX}run:stream")]
    assert len(set(ttls)) == 1
    assert ttls[0] > 0
    _do(client, durations.end_commands("run", "SUCCESS", None, None, request))  # told again, it is noted once
    assert _ends(client, "run") == [b"SUCCEEDED"]
    assert client.llen(durations.DURATIONS_PREFIX + "tests.flow") == 1


def test_a_failure_wakes_the_readers_of_all_runs_it_ends_and_no_duration_is_kept(client: fakeredis.FakeRedis) -> None:
    _started_run(client)
    _started_run(client, "inner", parent="run")
    _end(client, "step", "FAILURE", _request("tests.add", agentlink_run="inner", agentlink_place="0"))
    assert (_ends(client, "inner"), _ends(client, "run")) == ([b"FAILED"], [b"FAILED"])
    assert not client.exists(durations.DURATIONS_PREFIX + "tests.flow")


def test_a_run_that_is_resumed_may_be_told_more_and_ends_again(client: fakeredis.FakeRedis) -> None:
    def tell() -> str:
        speaker = Speaker(run_id="run", step="step", task="tests.add", attempt=1)
        said = Said(number=1, items=[item(EMIT, '"word"')], fraction=None, message=None, must_arrive=True)
        return tell_broker(client, speaker, said, 1_000_000)

    _started_run(client)
    request = _request("tests.add", agentlink_run="run", agentlink_place="0")
    assert tell() == "told"
    _end(client, "step", "FAILURE", request)
    assert tell() == "ended"
    client.eval(steering.RESET, 1, RUN_PREFIX + "run", ending.ending_facts(2.0, None, None), 100, "[]", "")
    assert tell() == "told"
    _end(client, "step", "SUCCESS", request)
    _end(client, "run", "SUCCESS", request)
    assert _ends(client, "run") == [b"FAILED", b"SUCCEEDED"]
    assert [one.attempt for one in said_so_far(client, "run", (EMIT,))] == [1, 2]


@pytest.mark.parametrize(
    ("task_id", "state", "facts"),
    [
        ("run", "STARTED", {"agentlink_run": "run", "agentlink_place": "0"}),
        ("step", "SUCCESS", {"agentlink_run": "run", "agentlink_place": "0"}),
        ("step", "RETRY", {"agentlink_run": "run", "agentlink_place": "0"}),
        # in no run: its result may go along with its acknowledgement, which nothing else can
        ("run", "SUCCESS", {}),
        ("run", "FAILURE", {}),
    ],
)
def test_what_ends_no_run_costs_nothing(
    client: fakeredis.FakeRedis, task_id: str, state: str, facts: dict[str, Any]
) -> None:
    assert not list(durations.end_commands(task_id, state, None, None, _request("tests.add", **facts)))


def test_tasks_are_expected_to_take_what_was_measured_and_workflows_what_their_runs_took(
    client: fakeredis.FakeRedis,
) -> None:
    for name in ("a", sample.sums.name, sample.double.name):
        profiles.record(client, {name: [Used(peak_bytes=1, cpu_s=1.0, wall_s=seconds) for seconds in (1.0, 3.0)]})
    client.rpush(durations.DURATIONS_PREFIX + sample.sums.name, "10.0", "20.0")
    names = ["a", "b", sample.sums.name, sample.double.name]
    # Of `double` only the building of its canvas is known.
    assert durations.expected_s(client, names) == {"a": 2.0, sample.sums.name: 15.0}
    assert durations.expected_s(client, []) == {}


def test_what_is_read_of_a_step_is_what_its_last_replacement_told(client: fakeredis.FakeRedis) -> None:
    client.hset(told_key("run"), "s", '{"fraction": 0.9, "top": 0.9, "message": "old", "at": 1.0}')
    client.hset(told_key("run"), "s/1", '{"fraction": 0.2, "top": 0.4, "message": "", "at": 2.0}')
    client.hset(told_key("run"), "silent", '{"attempt": 1}')
    client.hset(told_key("run"), "#bytes", "17")
    assert read_told(client, "run") == {"s": Told(fraction=0.2, top=0.4, message=None, at=2.0)}


def test_a_handle_sees_no_step_back(client: fakeredis.FakeRedis) -> None:
    run = WorkflowRun("run", SimpleNamespace(client=client, remove_pending_result=lambda result: result))
    two = run.progress_by(_run(), _steps(("a", DONE), ("a", WAITS)))
    three = run.progress_by(_run(), _steps(("a", DONE), ("a", WAITS), ("a", WAITS)))
    assert two.fraction == three.fraction == 0.5
