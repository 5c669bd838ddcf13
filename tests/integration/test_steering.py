"""Runs are cancelled, and go on where they failed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery.exceptions import TaskRevokedError

from tasks import app
from tests.integration import steered
from tests.integration.conftest import running_system
from tests.integration.system import System, Worker
from tests.waiting import wait_until
from workflows import CanvasChanged, ResumeRefused, RunNotEnded, RunState, StepState, WorkflowRun, resume_all, store

IMPORTS = "tests.integration.sample,tests.integration.steered"


def _start_worker(system: System, **settings: str) -> Worker:
    return system.start_worker(imports=IMPORTS, **settings)


@pytest.fixture(scope="class")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("system")) as system:
        _start_worker(system, cancel_grace="1s")
        yield system


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger"
    path.touch()
    return path


def _lines(ledger: Path) -> Counter[str]:
    return Counter(ledger.read_text().splitlines())


def _states(run: WorkflowRun) -> list[StepState]:
    return [step.state for step in run.steps()]


def _failed(run: WorkflowRun) -> WorkflowRun:
    with pytest.raises(Exception, match=r"is not there|broken"):
        run.get(timeout=20)
    wait_until(lambda: StepState.RUNNING not in _states(run), what="the steps beside it to end")
    return run


@pytest.mark.usefixtures("shared")
class TestFailing:
    def test_what_has_not_begun_is_withdrawn_and_can_be_waited_for(self, ledger: Path) -> None:
        run = _failed(steered.mended.delay(str(ledger), "/nowhere"))
        assert run.progress.state is RunState.FAILED
        assert {StepState.SUCCEEDED, StepState.FAILED, StepState.CANCELLED} >= set(_states(run))
        withdrawn = [step for step in run.steps() if step.state is StepState.CANCELLED]
        assert [step.name.rsplit(".")[-1] for step in withdrawn][-2:] == ["joined", "then"]
        with pytest.raises(TaskRevokedError):
            run.app.AsyncResult(withdrawn[-2].id).get(timeout=5)

    def test_the_failure_tells_step_place_attempts_and_error(self, ledger: Path) -> None:
        failure = _failed(steered.mended.delay(str(ledger), "/nowhere")).record().failure
        assert failure is not None
        assert (failure["place"], failure["attempts"], failure["type"]) == ("1.1", 1, "RuntimeError")
        assert failure["message"] == "cured is not there"

    def test_steps_that_need_not_wait_for_it_may_end_first(self, ledger: Path, tmp_path: Path) -> None:
        go = tmp_path / "go"
        run = steered.finishing.delay(str(ledger), str(go))
        wait_until(lambda: StepState.FAILED in _states(run), what="the failure")
        assert run.progress.state is RunState.RUNNING
        go.touch()
        wait_until(lambda: run.progress.ended, what="the end of the run")
        assert run.progress.state is RunState.FAILED
        assert _lines(ledger) == {"w": 1, "x": 1}

    def test_what_was_done_is_undone_newest_first_and_then_made_up_for(self, ledger: Path) -> None:
        run = steered.saga.delay(str(ledger))
        wait_until(lambda: "cleans up" in ledger.read_text(), what="the clean-up")
        *lines, last = ledger.read_text().splitlines()
        assert lines == ["flight", "hotel", "car", "undid car", "undid hotel", "undid flight"]
        assert last == f"cleans up {run.id}: RuntimeError in 3"

    def test_a_run_that_ends_with_a_workflow_is_listed_in_its_state_alone(self, ledger: Path) -> None:
        """That workflow has the run's id: it is no other run, which waits to be begun."""
        steered.saga.delay(str(ledger))
        wait_until(lambda: "cleans up" in ledger.read_text(), what="the clean-up")
        client = app.backend.client
        wait_until(lambda: store.count_runs(client)[RunState.RUNNING] == 0, what="the end of all runs")
        assert store.count_runs(client)[RunState.QUEUED] == 0


@pytest.mark.usefixtures("shared")
class TestResuming:
    def test_a_run_goes_on_where_it_failed(self, ledger: Path, tmp_path: Path) -> None:
        cure = tmp_path / "cure"
        run = _failed(steered.mended.delay(str(ledger), str(cure)))
        before = _lines(ledger)
        cure.touch()
        assert run.resume().get(timeout=20) == "a+cured+b>c>last"
        assert set(_states(run)) == {StepState.SUCCEEDED}
        progress = run.progress
        assert (progress.state, progress.steps_done, progress.steps_total) == (RunState.SUCCEEDED, 7, 7)
        after = _lines(ledger)
        finished = {name for name in before if not name.startswith("tries")}
        assert all(after[name] == 1 for name in finished | {"joined", "last"})

    def test_it_may_fail_again_and_be_resumed_again(self, ledger: Path, tmp_path: Path) -> None:
        cure = tmp_path / "cure"
        run = _failed(steered.mended.delay(str(ledger), str(cure)))
        _failed(run.resume())
        cure.touch()
        assert run.resume().get(timeout=20) == "a+cured+b>c>last"
        assert _lines(ledger)["tries cured"] == 3

    def test_a_callback_of_a_finished_step_is_not_called_again(self, ledger: Path, tmp_path: Path) -> None:
        cure = tmp_path / "cure"
        run = _failed(steered.linked.delay(str(ledger), str(cure)))
        wait_until(lambda: _lines(ledger)["linked"], what="the callback")
        cure.touch()
        assert run.resume().get(timeout=20) == "cured"
        assert _lines(ledger) == {"a": 1, "linked": 1, "tries cured": 2}

    def test_a_run_in_a_run_goes_on_with_it(self, ledger: Path, tmp_path: Path) -> None:
        cure = tmp_path / "cure"
        run = _failed(steered.outer.delay(str(ledger), str(cure)))
        (inner,) = (step for step in run.steps() if step.name.endswith("mended"))
        with pytest.raises(ResumeRefused, match=f"it is a step of run {run.id}"):
            WorkflowRun(inner.id).resume()
        cure.touch()
        assert run.resume().get(timeout=20) == "a+cured+b>c>last>after"
        assert all(count == 1 for name, count in _lines(ledger).items() if not name.startswith("tries"))

    def test_a_step_and_all_that_comes_after_it_run_again_with_other_arguments(
        self, ledger: Path, tmp_path: Path
    ) -> None:
        cure = tmp_path / "cure"
        cure.touch()
        run = steered.mended.delay(str(ledger), str(cure))
        assert run.get(timeout=20) == "a+cured+b>c>last"
        run.resume(from_step="1.2.1", with_args={"ledger": str(ledger), "name": "d"})
        assert run.get(timeout=20) == "a+cured+b>d>last"
        again = {name for name, count in _lines(ledger).items() if count == 2}
        assert again == {"joined", "last"}
        assert _lines(ledger)["d"] == 1

    def test_a_step_is_named_by_its_task_where_that_is_the_only_one(self, ledger: Path, tmp_path: Path) -> None:
        cure = tmp_path / "cure"
        cure.touch()
        run = steered.mended.delay(str(ledger), str(cure))
        run.get(timeout=20)
        with pytest.raises(ResumeRefused, match=r"there are several of 'then'; want the place of a step: 1\.2\.1"):
            run.resume(from_step="then")
        with pytest.raises(ResumeRefused, match="there is no step 'nothing'"):
            run.resume(from_step="nothing")
        with pytest.raises(ResumeRefused, match="with_args needs from_step"):
            run.resume(with_args=[1])
        run.resume(from_step="joined")
        assert run.get(timeout=20) == "a+cured+b>c>last"
        assert _lines(ledger)["joined"] == 2

    def test_another_canvas_is_refused_with_the_first_difference(self, ledger: Path, tmp_path: Path) -> None:
        mood = tmp_path / "mood"
        run = _failed(steered.moody.delay(str(ledger), "/nowhere", str(mood)))
        mood.touch()
        with pytest.raises(CanvasChanged, match=r"at place 1 there was .*fails_until, and now there is .*then"):
            run.resume().get(timeout=20)
        assert run.progress.state is RunState.FAILED
        mood.unlink()
        cure = tmp_path / "cure"
        cure.touch()
        _failed(run.resume())  # its own argument names another file

    def test_only_a_run_that_has_ended_badly_is_resumed(self, ledger: Path, tmp_path: Path) -> None:
        cure = tmp_path / "cure"
        cure.touch()
        run = steered.mended.delay(str(ledger), str(cure))
        run.get(timeout=20)
        with pytest.raises(RunNotEnded, match="it is SUCCEEDED"):
            run.resume()

    def test_all_that_failed_with_an_error_are_resumed(self, shared: System, ledger: Path, tmp_path: Path) -> None:
        cure = tmp_path / "cure"
        ids = [_failed(steered.mended.delay(str(ledger), str(cure))).id for _ in range(2)]
        runs = [WorkflowRun(run_id) for run_id in ids]
        cure.touch()
        resumed = list(resume_all(shared.client, workflow="mended", error="CURED is not there"))
        assert {run.id for run in runs} <= {run.id for run, refused in resumed if refused is None}
        assert [run.get(timeout=20) for run in runs] == ["a+cured+b>c>last"] * 2


@pytest.mark.usefixtures("shared")
class TestCancelling:
    def test_a_running_step_tidies_up_and_nothing_more_begins(self, ledger: Path, tmp_path: Path) -> None:
        started = tmp_path / "started"
        run = steered.long.delay(str(ledger), str(started))
        wait_until(started.exists, what="the step to run")
        began_at = time.monotonic()
        assert run.cancel("no longer needed")
        assert run.progress.state is RunState.CANCELLED
        wait_until(lambda: StepState.RUNNING not in _states(run), what="the step to end")
        assert time.monotonic() - began_at < 2
        assert _lines(ledger) == {"a": 1, "tidied": 1}
        assert _states(run) == [StepState.SUCCEEDED, StepState.CANCELLED, StepState.CANCELLED]
        with pytest.raises(TaskRevokedError):
            run.get(timeout=5)
        assert (run.record().failure or {})["error"] == "cancelled: no longer needed"
        assert not run.cancel()

    def test_one_that_does_not_obey_is_killed(self, ledger: Path, tmp_path: Path) -> None:
        started = tmp_path / "started"
        run = steered.stubborn.delay(str(started), str(ledger))
        wait_until(started.exists, what="the step to run")
        run.cancel()
        wait_until(lambda: StepState.RUNNING not in _states(run), what="the step to be killed")
        assert _states(run) == [StepState.CANCELLED, StepState.CANCELLED]
        assert _lines(ledger) == {}

    def test_a_run_in_a_run_is_cancelled_with_it(self, ledger: Path, tmp_path: Path) -> None:
        started = tmp_path / "started"
        run = steered.outer_long.delay(str(ledger), str(started))
        wait_until(started.exists, what="the step to run")
        run.cancel()
        inner = WorkflowRun(run.steps()[0].id)
        assert inner.progress.state is RunState.CANCELLED
        wait_until(lambda: StepState.RUNNING not in _states(inner), what="the step to end")
        assert _lines(ledger) == {"a": 1, "tidied": 1}

    def test_a_cancelled_run_can_be_resumed(self, ledger: Path, tmp_path: Path) -> None:
        started = tmp_path / "started"
        run = steered.long.delay(str(ledger), str(started))
        wait_until(started.exists, what="the step to run")
        run.cancel()
        started.unlink(missing_ok=True)
        run.resume()
        wait_until(started.exists, what="the step to run again")
        run.cancel()
        wait_until(lambda: _lines(ledger)["tidied"] == 2, what="the end of the second attempt")
        assert _lines(ledger)["a"] == 1


class TestRestarts:
    def test_what_was_cancelled_stays_so(self, system: System, ledger: Path) -> None:
        """Its messages still wait when worker and broker are gone, and are refused when they are back."""
        run = steered.many.delay(str(ledger), 50)
        other = steered.many.delay(str(ledger), 3)
        assert run.cancel()
        system.restart_broker()
        _start_worker(system)
        assert other.get(timeout=20) == "0+1+2"
        wait_until(lambda: not system.client.llen("cpu") and not system.in_flight(), what="the queue to be empty")
        assert _lines(ledger) == {"0": 1, "1": 1, "2": 1, "joined": 1}

    def test_a_running_step_is_ended_by_a_worker_that_was_away_from_the_broker(
        self, system: System, ledger: Path, tmp_path: Path
    ) -> None:
        started = tmp_path / "started"
        _start_worker(system)
        run = steered.long.delay(str(ledger), str(started))
        wait_until(started.exists, what="the step to run")
        run.cancel()
        system.restart_broker()
        wait_until(lambda: _lines(ledger)["tidied"], what="the step to be asked to end")
        wait_until(lambda: StepState.RUNNING not in _states(run), what="that to be recorded")

    def test_a_run_is_resumed_across_a_restart_of_worker_and_broker(
        self, system: System, ledger: Path, tmp_path: Path
    ) -> None:
        cure = tmp_path / "cure"
        worker = _start_worker(system)
        run = _failed(steered.mended.delay(str(ledger), str(cure)))
        worker.kill()
        system.restart_broker()
        cure.touch()
        run.resume()
        system.restart_broker()
        _start_worker(system)
        assert run.get(timeout=20) == "a+cured+b>c>last"

    def test_a_resumption_goes_on_when_who_asked_for_it_is_gone(
        self, system: System, ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cure = tmp_path / "cure"
        _start_worker(system)
        run = _failed(steered.mended.delay(str(ledger), str(cure)))
        cure.touch()
        with monkeypatch.context() as patched:
            patched.setattr("workflows.steering.replay", _dies)
            with pytest.raises(SystemExit):
                run.resume()
        assert WorkflowRun(run.id).get(timeout=20) == "a+cured+b>c>last"


def _dies(*_: object) -> None:
    raise SystemExit


def test_calls_with_one_key_are_one_run(system: System, ledger: Path) -> None:
    runs = [steered.many.apply_async((str(ledger), 3), idempotency_key="monday") for _ in range(3)]
    other = steered.many.apply_async((str(ledger), 2), idempotency_key="tuesday")
    assert {run.id for run in runs} == {runs[0].id} != {other.id}
    _start_worker(system)
    assert [run.get(timeout=20) for run in [*runs, other]] == ["0+1+2"] * 3 + ["0+1"]
    assert steered.many.apply_async((str(ledger), 3), idempotency_key="monday").get(timeout=5) == "0+1+2"
    assert _lines(ledger) == {"0": 2, "1": 2, "2": 1, "joined": 2}
