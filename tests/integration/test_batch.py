"""The jobs of a file on real workers: what starts when, what a failure does, and what a killed worker leaves."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from resource_guard.errors import TaskTooLarge
from tests.integration import batches
from tests.integration.system import System, Worker
from tests.process_tree import alive
from tests.waiting import wait_until
from workflows import RunState, StepState, WorkflowRun, batch
from workflows.batch import JobFailed, JobsFailed
from workflows.batch_plan import BatchInvalid

ANSWER_S = 30
# Says that it has begun, and ends when there is a file `go-…`.
WAIT = 'echo {name} >> ledger; touch "begun-{name}"; until [ -e "go-{name}" ]; do sleep 0.02; done'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the file is, and the caller too."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def job(name: str, command: str | None = None, **fields: Any) -> str:
    """A job that waits for its file, or runs a command."""
    lines = [f"{field} = {toml(value)}" for field, value in fields.items()]
    command = WAIT.replace("{name}", name) if command is None else command
    return "\n".join([f"[jobs.{json.dumps(name)}]", f"command = {json.dumps(command)}", *lines, ""])


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {toml(one)}" for name, one in value.items()) + " }"
    return json.dumps(value)


def start(folder: Path, *jobs: str, top: str = "") -> WorkflowRun:
    (folder / "jobs.toml").write_text("\n".join([top, *jobs]))
    return batch.delay("jobs.toml")


def begun(folder: Path) -> set[str]:
    return {path.name.removeprefix("begun-") for path in folder.glob("begun-*")}


def wait_until_begun(folder: Path, *names: str) -> None:
    wait_until(lambda: begun(folder) == set(names), what=f"{names}, and not only {begun(folder)}", timeout_s=ANSWER_S)


def let_go(folder: Path, *names: str) -> None:
    for name in names:
        (folder / f"go-{name}").touch()


def steps_in(run: WorkflowRun, state: StepState) -> int:
    return sum(step.state is state for step in run.steps())


def test_a_job_starts_as_soon_as_its_own_needs_have_succeeded(system: System, folder: Path) -> None:
    """A level of chords would have `late`, which needs only `b`, wait for `c`, which is in the level of `b`."""
    system.start_worker(concurrency=3)
    run = start(
        folder,
        job("d", needs=["late", "c"]),
        job("late", needs=["b"]),
        job("b", needs=["a"]),
        job("c", needs=["a"]),
        job("a"),
    )
    wait_until_begun(folder, "a")
    let_go(folder, "a")
    wait_until_begun(folder, "a", "b", "c")
    let_go(folder, "b")
    wait_until_begun(folder, "a", "b", "c", "late")
    let_go(folder, "late")
    wait_until(lambda: steps_in(run, StepState.SUCCEEDED) == 3, what="the end of late", timeout_s=ANSWER_S)
    assert "d" not in begun(folder)
    let_go(folder, "c")
    wait_until_begun(folder, "a", "b", "c", "late", "d")
    let_go(folder, "d")
    result = run.get(timeout=ANSWER_S)
    assert [one["name"] for one in result["jobs"]] == ["d", "late", "b", "c", "a"]
    assert run.progress.state is RunState.SUCCEEDED
    assert {step.state for step in run.steps()} == {StepState.SUCCEEDED}
    assert list(system.client.scan_iter("agentlink:graph:*")) == []


def test_a_result_tells_of_each_job_and_where_its_output_is(system: System, folder: Path) -> None:
    system.start_worker()
    again = 'echo "try $0"; echo trouble >&2; test -e seen || { touch seen; exit 3; }'
    run = start(
        folder,
        job("say it", "echo $WORD; pwd", env={"WORD": "ünï"}),
        job("again", again, retries=2, needs=["say it"]),
        job("quiet", "true", memory="100MB", cpu=1),
    )
    say, again_, quiet = run.get(timeout=ANSWER_S)["jobs"]
    assert (say["name"], say["exit_code"], say["attempts"], say["errors"]) == ("say it", 0, 1, None)
    assert Path(say["output"]).read_text() == f"ünï\n{folder}\n"
    assert Path(say["output"]).parts[-3:] == ("0001-say_it", "1", "stdout")
    assert Path(say["output"]).is_relative_to(system.settings.runs_folder / run.id)
    assert (again_["attempts"], Path(again_["errors"]).read_text()) == (2, "trouble\n")
    assert (Path(again_["errors"]).parents[1] / "1" / "stderr").read_text() == "trouble\n"
    assert (quiet["output"], quiet["errors"]) == (None, None)
    assert 0 <= quiet["seconds"] < ANSWER_S


def test_a_job_that_needs_a_matrix_starts_after_all_of_it(system: System, folder: Path) -> None:
    system.start_worker(concurrency=3)
    matrix = {"a": [1, 2], "b": ["x y"]}
    run = start(
        folder,
        job("join", "cat out-*", needs=["part"]),
        job("part", "echo '{a}' $a ${b} >> 'out-{a}-{b}'", matrix=matrix),
    )
    result = run.get(timeout=ANSWER_S)
    assert [one["name"] for one in result["jobs"]] == ["join", "part[a=1,b=x y]", "part[a=2,b=x y]"]
    assert Path(result["jobs"][0]["output"]).read_text() == "1 1 x y\n2 2 x y\n"


def test_a_job_that_fails_fails_the_run_at_once_and_nothing_more_starts(system: System, folder: Path) -> None:
    system.start_worker(concurrency=2)
    run = start(
        folder,
        job("bad", "echo no such luck >&2; exit 7"),
        job("good"),
        job("after good", needs=["good"]),
        job("after bad", needs=["bad"]),
    )
    with pytest.raises(JobFailed, match=r"exit status 7, saying 'no such luck' \(attempt 1\)") as caught:
        run.get(timeout=ANSWER_S)
    assert caught.value.job == "bad"
    assert run.progress.state is RunState.FAILED
    let_go(folder, "good")
    wait_until(lambda: system.in_flight() == 0, what="the end of good", timeout_s=ANSWER_S)
    states = [step.state for step in run.steps()]
    assert states[0] is StepState.FAILED
    assert states[2:4] == [StepState.CANCELLED, StepState.CANCELLED]
    assert begun(folder) <= {"good"}


def test_a_thousand_jobs_begin_within_seconds_and_none_does_after_a_failure(system: System, folder: Path) -> None:
    worker = system.start_worker(concurrency=1)
    gate = WAIT.replace("{name}", "gate") + "; exit 1"
    began_at = time.monotonic()
    run = start(folder, job("gate", gate), *(job(f"j{number}", "touch ran") for number in range(999)))
    assert time.monotonic() - began_at < 2
    wait_until_begun(folder, "gate")
    assert time.monotonic() - began_at < 10
    assert run.progress.steps_total == 1001
    let_go(folder, "gate")
    with pytest.raises(JobFailed):
        run.get(timeout=ANSWER_S)
    worker.wait_for_log("is not run: its run has ended", timeout_s=40, times=999)
    assert not (folder / "ran").exists()


def test_a_job_that_takes_too_long_is_tried_again_and_has_failed(system: System, folder: Path) -> None:
    system.start_worker()
    run = start(folder, job("slow", "echo x >> ledger; sleep 100", timeout="300ms", retries=1))
    with pytest.raises(JobFailed, match=r"took longer than 0.3 s and was killed \(attempt 2\)"):
        run.get(timeout=ANSWER_S)
    assert (folder / "ledger").read_text() == "x\nx\n"


def test_a_program_that_is_missing_is_not_tried_again(system: System, folder: Path) -> None:
    system.start_worker()
    (folder / "jobs.toml").write_text('[jobs.a]\ncommand = ["no-such-program"]\nretries = 50\n')
    with pytest.raises(JobFailed, match="there is no program 'no-such-program'"):
        batch.delay("jobs.toml").get(timeout=ANSWER_S)


def test_with_keep_going_all_that_can_be_done_is_done_before_the_run_fails(system: System, folder: Path) -> None:
    system.start_worker(concurrency=2)
    run = start(
        folder,
        job("bad", "exit 7"),
        job("below", "true", needs=["bad"]),
        job("below that", "true", needs=["below", "good"]),
        job("good", needs=["first"]),
        job("first", "true"),
        top="keep_going = true",
    )
    wait_until_begun(folder, "good")
    wait_until(lambda: steps_in(run, StepState.FAILED) == 1, what="the failure", timeout_s=ANSWER_S)
    assert run.progress.state is RunState.RUNNING
    let_go(folder, "good")
    with pytest.raises(JobsFailed) as caught:
        run.get(timeout=ANSWER_S)
    assert str(caught.value).startswith("1 of 5 jobs failed: bad: ")
    assert str(caught.value).endswith("not run, since they need those: below, below that")
    assert run.progress.state is RunState.FAILED


def test_a_killed_worker_repeats_no_job_that_has_ended(system: System, folder: Path) -> None:
    first = system.start_worker(concurrency=2, lease="1s")
    run = start(
        folder,
        job("done", "echo done >> ledger"),
        job("broken off", needs=["done"]),
        job("after", "echo after >> ledger", needs=["broken off", "done"]),
    )
    wait_until_begun(folder, "broken off")
    kill_all(first)
    let_go(folder, "broken off")
    system.start_worker(concurrency=2, lease="1s")
    result = run.get(timeout=ANSWER_S)
    assert (folder / "ledger").read_text().splitlines() == ["done", "broken off", "broken off", "after"]
    assert [one["attempts"] for one in result["jobs"]] == [1, 2, 1]


def test_what_was_planned_survives_the_broker(system: System, folder: Path) -> None:
    system.start_worker()
    run = start(folder, job("a"), job("b", "true", needs=["a"]))
    wait_until_begun(folder, "a")
    system.restart_broker()
    let_go(folder, "a")
    assert len(run.get(timeout=ANSWER_S)["jobs"]) == 2


@pytest.mark.parametrize("field", [None, "steps", "begun"])
def test_a_process_killed_around_the_plan_leaves_a_run_in_which_each_job_runs_once(
    system: System, folder: Path, field: str | None
) -> None:
    """Killed when the run's steps are recorded, when the graph's shape is known, or when its first steps are queued."""
    worker = system.start_worker(concurrency=1)
    run = start(folder, job("a"), *(job(f"b{number}", f"echo {number} >> ledger", needs=["a"]) for number in range(40)))
    graph, client = f"agentlink:graph:{run.id}:", system.client
    wait_until(
        lambda: client.hexists(graph, field) if field else client.exists(f"agentlink:run:{run.id}:steps"),
        what="the plan",
        timeout_s=ANSWER_S,
    )
    (child,) = worker.children()
    os.kill(child, signal.SIGKILL)
    let_go(folder, "a")
    assert len(run.get(timeout=ANSWER_S)["jobs"]) == 41
    written = [line for line in (folder / "ledger").read_text().splitlines() if line != "a"]
    assert sorted(written, key=int) == [str(number) for number in range(40)]


def kill_all(worker: Worker) -> None:
    """The main process, and wait until all that it has started is gone with it."""
    pids = [child.pid for pool in worker.children() for child in psutil.Process(pool).children(recursive=True)]
    pids += worker.children()
    worker.kill()
    wait_until(lambda: not alive(pids), what="the end of the pool and its programs")


def test_a_wrong_file_is_refused_with_all_that_is_wrong_before_anything_is_sent(system: System, folder: Path) -> None:
    with pytest.raises(BatchInvalid) as caught:
        start(folder, job("a", needs=["b"]), job("c", retries=-1))
    assert len(caught.value.problems) == 2
    with pytest.raises(BatchInvalid, match="No such file"):
        batch.delay("gone.toml")
    assert system.client.dbsize() == 0


def test_a_batch_is_a_step_like_any_workflow(system: System, folder: Path) -> None:
    """Between two others, in a chord's header, and as the last of its run."""
    system.start_worker(imports="tests.integration.sample,tests.integration.batches")
    (folder / "jobs.toml").write_text(job("a", "echo a") + job("b", "echo b", needs=["a"]))
    file = str(folder / "jobs.toml")
    assert batches.between.delay(file).get(timeout=ANSWER_S) == 12
    assert batches.beside.delay(file).get(timeout=ANSWER_S) == 4
    run = batches.last.delay(file)
    assert len(run.get(timeout=ANSWER_S)["jobs"]) == 2
    wait_until(lambda: run.progress.state is RunState.SUCCEEDED, what="the end of the run")
    assert list(system.client.scan_iter("agentlink:graph:*")) == []


def test_what_a_job_declares_reaches_the_guard(system: System, folder: Path) -> None:
    system.start_worker()
    run = start(
        folder, job("fine", "true", memory="50MB", cpu=0.5), job("huge", "true", memory="900TB", needs=["fine"])
    )
    with pytest.raises(TaskTooLarge, match="declares memory='900 TB'"):
        run.get(timeout=ANSWER_S)


def test_a_run_that_is_started_anew_repeats_no_job_that_has_succeeded(system: System, folder: Path) -> None:
    system.start_worker(concurrency=2)
    run = start(
        folder,
        job("done", "echo done >> ledger"),
        job("needs luck", "test -e luck", needs=["done"]),
        job("after", "echo after >> ledger", needs=["needs luck", "done"]),
    )
    with pytest.raises(JobFailed):
        run.get(timeout=ANSWER_S)
    (folder / "luck").touch()
    again = run.resume()
    assert [one["attempts"] for one in again.get(timeout=ANSWER_S)["jobs"]] == [1, 1, 1]
    assert (folder / "ledger").read_text() == "done\nafter\n"
    assert again.progress.state is RunState.SUCCEEDED
