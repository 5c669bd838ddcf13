"""A pool that stops does not wait for what will never come, and one that goes on does not watch who has gone."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from agentlink.broker.celery_step import but_those_noticed, forget_the_unbegun
from agentlink.broker.whole_answers import WholeAnswers


@pytest.fixture
def process() -> Iterator[Any]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


class Gone:
    """A process that has ended; no process has such a number."""

    pid = 2**22 + 1


def job(*, accepted: bool, process: Any = None) -> Any:
    return SimpleNamespace(_accepted=accepted, _write_to=process)


def test_what_no_process_has_begun_is_forgotten_after_a_while_and_what_runs_is_not() -> None:
    now, asked = [100.0], []
    jobs: dict[int, Any] = {1: job(accepted=True), 2: job(accepted=False, process=Gone())}
    check = forget_the_unbegun(jobs, lambda: asked.append(now[0]), clock=lambda: now[0])
    check()
    now[0] += 4.9
    check()
    assert set(jobs) == {1, 2}
    now[0] += 0.2
    check()
    assert set(jobs) == {1}
    assert len(asked) == 3


def test_a_process_that_waits_for_the_rest_of_a_job_is_killed_when_it_has_no_other(process: Any) -> None:
    now = [100.0]
    jobs = {1: job(accepted=True, process=process), 2: job(accepted=False, process=process)}
    check = forget_the_unbegun(jobs, None, clock=lambda: now[0])
    check()
    now[0] += 60
    check()
    assert set(jobs) == {1, 2}
    assert process.poll() is None
    del jobs[1]
    check()
    assert jobs == {}
    assert process.wait(timeout=10) == -9


def test_a_process_whose_end_was_noticed_is_not_watched_again() -> None:
    watched: list[tuple[Any, Any]] = []
    track = but_those_noticed(lambda process, hub: watched.append((process, hub)))
    new, known, gone = SimpleNamespace(), SimpleNamespace(_sentinel_poll=7), SimpleNamespace(_sentinel_poll=None)
    for process in (new, known, gone):
        track(process, "hub")
    assert watched == [(new, "hub"), (known, "hub")]


class TestWholeAnswers:
    def test_a_stop_in_the_middle_of_an_answer_comes_after_it(self) -> None:
        done: list[str] = []

        def receive(name: str) -> Iterator[None]:
            done.append(f"{name} half")
            answers.stop()
            yield
            answers.stop()
            done.append(f"{name} noted")

        answers = WholeAnswers(receive, lambda: done.append("stop"))
        done.extend("elsewhere" for _ in answers.receive("one"))
        assert done == ["one half", "stop", "elsewhere", "one noted", "stop"]
        answers.stop()
        assert done[-2:] == ["stop", "stop"]

    def test_an_answer_that_breaks_off_is_told_and_the_stop_still_comes(self) -> None:
        done: list[str] = []

        def receive() -> Iterator[None]:
            answers.stop()
            yield from ()
            raise EOFError

        answers = WholeAnswers(receive, lambda: done.append("stop"))
        with pytest.raises(EOFError):
            list(answers.receive())
        assert done == ["stop"]
