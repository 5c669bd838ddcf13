"""Runs are cancelled, signalled and resumed while messages of theirs are on their way: none runs twice or is lost."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlink.broker.errors import Overtaken
from tasks import app
from tests.integration import racing, steered
from tests.integration.conftest import running_system
from tests.integration.sample import note
from tests.integration.system import System
from tests.waiting import wait_until
from workflows import ResumeRefused, RunState, StepState, WorkflowRun, compensation, errands, store


@pytest.fixture(scope="class")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("system")) as system:
        system.start_worker(imports=racing.IMPORTS, concurrency=2)
        yield system


def _lines(path: Path) -> Counter[str]:
    return Counter(path.read_text().splitlines())


def _states(run: WorkflowRun) -> set[StepState]:
    return {step.state for step in run.steps()}


def _failed(run: WorkflowRun) -> WorkflowRun:
    wait_until(lambda: run.progress.state is RunState.FAILED, what="the failure")
    wait_until(lambda: StepState.RUNNING not in _states(run), what="the steps beside it to end")
    return run


def test_messages_of_before_the_resumption_do_nothing(system: System, path: Path, tmp_path: Path) -> None:
    """They come first, as they are older: each step runs once, and at once, all the same."""
    cure = tmp_path / "cure"
    worker = system.start_worker(imports=racing.IMPORTS, concurrency=1)
    run = racing.fails_early.delay(str(path), str(cure), 40)
    wait_until(lambda: run.progress.state is RunState.FAILED, what="the failure")
    worker.process.send_signal(signal.SIGSTOP)
    cure.touch()
    run.resume()
    worker.process.send_signal(signal.SIGCONT)
    began_at = time.monotonic()
    assert run.get(timeout=20) == "+".join(["cured", *(f"{number}>{number}b" for number in range(40))])
    assert time.monotonic() - began_at < 4  # the watch over lost chords would come later
    assert {name: times for name, times in _lines(path).items() if times > 1} == {"tries cured": 2}


@pytest.mark.usefixtures("shared")
class TestOnTheWay:
    def test_an_attempt_put_off_before_it_is_not_made_after_it(self, path: Path, tmp_path: Path) -> None:
        cure, go = tmp_path / "cure", tmp_path / "go"
        run = _failed(racing.fails_beside_a_retry.delay(str(path), str(cure), str(go)))
        Path(f"{go}.again").touch()
        cure.touch()
        resumed_at = time.monotonic()
        run.resume()
        wait_until(lambda: time.monotonic() > resumed_at + 3, what="the time of the first retry")
        go.touch()
        assert run.get(timeout=20) == "tried+cured"
        assert _lines(path)["tried"] == 1

    def test_what_a_step_has_replaced_itself_by_goes_on_where_it_failed(self, path: Path, tmp_path: Path) -> None:
        cure = tmp_path / "cure"
        run = _failed(racing.replaced.delay(str(path), str(cure)))
        cure.touch()
        assert run.resume().get(timeout=10) == "end>last"
        assert _lines(path) == {"first": 1, "part": 1, "tries cured": 2, "end": 1, "last": 1}

    def test_a_run_that_comes_too_late_ends_with_the_one_it_is_a_step_of(
        self, shared: System, path: Path, tmp_path: Path
    ) -> None:
        cure, go = tmp_path / "cure", tmp_path / "go"
        run = racing.fails_before_a_run.delay(str(path), str(cure), str(go))
        both = {StepState.RUNNING: 2}
        wait_until(lambda: Counter(step.state for step in run.steps()).items() >= both.items(), what="both to run")
        Path(f"{go}.fails").touch()
        wait_until(lambda: run.progress.state is RunState.FAILED, what="the failure")
        go.touch()
        (inner,) = (WorkflowRun(step.id) for step in run.steps() if step.name.endswith("inner"))
        wait_until(lambda: StepState.RUNNING not in _states(run), what="the other step's end")
        wait_until(lambda: not shared.in_flight(), what="the end of what is under way")
        assert store.which_go_on(shared.client, [inner.id]) == {inner.id: False}
        cure.touch()
        run.resume().get(timeout=10)
        assert _lines(path)["inner end"] == 1

    def test_a_run_cancelled_and_resumed_while_it_is_built_is_built_again(self, path: Path, tmp_path: Path) -> None:
        building, go = tmp_path / "building", tmp_path / "go"
        run = racing.slowly_built.delay(str(path), str(building), str(go))
        wait_until(building.exists, what="the workflow function")
        run.cancel()
        run.resume()
        go.touch()
        assert run.get(timeout=10) == "b"
        assert (_lines(path)["a"], _lines(path)["b"]) == (1, 1)

    def test_a_payload_not_yet_taken_is_kept(self, path: Path, tmp_path: Path) -> None:
        cure, busy = tmp_path / "cure", tmp_path / "busy"
        cure.touch()
        run = racing.asks.delay(str(path), str(cure), str(busy))
        wait_until(run.waiting, what="the step to wait")
        assert run.signal("approval", "yes")
        assert run.cancel()
        wait_until(lambda: StepState.RUNNING not in _states(run), what="the end of the step beside it")
        run.resume()
        busy.touch()
        assert run.get(timeout=10) == "yes>approved+cured"

    def test_a_run_cancelled_while_it_is_built_has_no_step_that_waits(self, path: Path, tmp_path: Path) -> None:
        building, go = tmp_path / "building", tmp_path / "go"
        run = racing.slowly_built.delay(str(path), str(building), str(go))
        wait_until(building.exists, what="the workflow function")
        run.cancel()
        go.touch()
        wait_until(lambda: len(run.steps()) == 2, what="the canvas")
        wait_until(lambda: _states(run) == {StepState.CANCELLED}, what="its end", timeout_s=3)


@pytest.mark.usefixtures("shared")
class TestEachFailure:
    """Of a run that is resumed and fails again."""

    def test_is_told_once(self, path: Path, tmp_path: Path) -> None:
        told = tmp_path / "told"
        run = steered.mended.apply_async((str(path), str(tmp_path / "cure")), link_error=note.si(str(told)))
        for times in (1, 2, 3):
            _failed(run)
            wait_until(lambda times=times: told.exists() and told.read_text().count("\n") == times, what="the callback")
            if times < 3:
                run.resume()
        (tmp_path / "cure").touch()
        assert run.resume().get(timeout=20) == "a+cured+b>c>last"
        assert told.read_text().count("\n") == 3

    def test_is_made_up_for_once(self, path: Path, tmp_path: Path) -> None:
        run = racing.made_up_for.delay(str(path), str(tmp_path / "cure"))
        for times in (1, 2):
            _failed(run)
            wait_until(lambda times=times: _lines(path)["made up for"] == times, what="the run that makes up for it")
            if times == 1:
                run.resume()
        assert _lines(path) == {"a": 1, "made up for": 2}

    def test_of_a_canvas_that_a_plain_client_has_started_and_that_is_refused_is_told(self, tmp_path: Path) -> None:
        told = tmp_path / "told"
        result = app.send_task(racing.empty.name, (), link_error=note.si(str(told)))
        with pytest.raises(Exception, match="an empty chain"):
            result.get(timeout=10)
        wait_until(told.exists, what="the callback")

    def test_after_its_steps_were_undone_it_is_started_anew_not_resumed(self, path: Path) -> None:
        run = steered.saga.delay(str(path))
        wait_until(lambda: "cleans up" in path.read_text(), what="the clean-up")
        with pytest.raises(ResumeRefused, match=r"its completed steps were undone by run [0-9a-f-]+: start it anew"):
            run.resume()


def test_a_failure_is_told_once_though_the_worker_that_tells_it_dies(
    system: System, path: Path, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    worker = system.start_worker(imports=racing.IMPORTS, lease="1s")
    run = steered.mended.apply_async((str(path), str(tmp_path / "cure")), link_error=note.si(str(told)))
    for times in (1, 2):
        wait_until(lambda: run.progress.state is RunState.FAILED, what="the failure")
        worker.kill()
        worker = system.start_worker(imports=racing.IMPORTS, lease="1s")
        wait_until(lambda times=times: told.exists() and told.read_text().count("\n") == times, what="the callback")
        wait_until(lambda: not system.in_flight(), what="the end of what the dead worker had")
        if times == 1:
            run.resume()
    assert told.read_text().count("\n") == 2


def test_a_run_that_is_resumed_as_it_is_about_to_be_made_up_for_is_not(
    system: System, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = racing.made_up_for.delay(str(path), str(tmp_path / "cure"))
    app.backend.mark_as_failure(run.id, RuntimeError("failed from outside"))
    assert run.progress.state is RunState.FAILED
    completed = compensation._completed

    def resumed_meanwhile(*args: object) -> object:
        found = completed(*args)
        run.resume()
        return found

    with monkeypatch.context() as patched:
        patched.setattr(compensation, "_completed", resumed_meanwhile)
        patched.setattr(racing.made_up_for, "undoes", True)
        with pytest.raises(Overtaken):
            compensation.start(system.client, run.id, f"compensate {run.id}")
    errands.do_due(system.client)
    assert [one.id for one in store.latest_runs(system.client, 9)] == [run.id]
    assert run.progress.state is RunState.QUEUED
