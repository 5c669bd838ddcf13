"""A pool that stops does not wait for what will never come, and one that goes on does not watch who has gone."""

from __future__ import annotations

import os
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


class Loop:
    """As much of an event loop as is asked for."""

    def __init__(self) -> None:
        self.readers: dict[int, tuple[Any, tuple[Any, ...]]] = {}
        self.added: list[int] = []

    def add_reader(self, fd: int, handler: Any, *args: Any) -> None:
        self.readers[fd] = (handler, args)
        self.added.append(fd)


class TestWholeAnswers:
    @pytest.fixture
    def pipe(self) -> Iterator[tuple[int, int]]:
        """A process's pipe: one byte an answer."""
        ends = os.pipe()
        yield ends
        for end in ends:
            os.close(end)

    def test_a_stop_in_the_middle_of_an_answer_comes_after_it(self, pipe: tuple[int, int]) -> None:
        done: list[str] = []

        def receive(_add_reader: Any, fd: int, _callback: Any) -> Iterator[None]:
            done.append("half")
            answers.stop()
            yield
            answers.stop()
            done.append(f"{os.read(fd, 1).decode()} noted")

        answers = WholeAnswers(receive, lambda: done.append("stop"))
        os.write(pipe[1], b"1")
        done.extend("elsewhere" for _ in answers.receive(Loop().add_reader, pipe[0], print))
        assert done == ["half", "stop", "elsewhere", "1 noted", "stop"]
        answers.stop()
        assert done[-2:] == ["stop", "stop"]

    def test_an_answer_that_breaks_off_is_told_and_the_stop_still_comes(self, pipe: tuple[int, int]) -> None:
        done: list[str] = []

        def receive(*_: Any) -> Iterator[None]:
            answers.stop()
            yield from ()
            raise EOFError

        answers = WholeAnswers(receive, lambda: done.append("stop"))
        with pytest.raises(EOFError):
            list(answers.receive(Loop().add_reader, pipe[0], print))
        assert done == ["stop"]

    def test_what_has_come_is_read_in_one_turn_and_not_all_of_a_flood(self, pipe: tuple[int, int]) -> None:
        read: list[bytes] = []

        def receive(_add_reader: Any, fd: int, callback: Any) -> Iterator[None]:
            yield from ()
            callback(os.read(fd, 1))

        answers = WholeAnswers(receive, lambda: None)
        os.write(pipe[1], b"abc")
        assert list(answers.receive(Loop().add_reader, pipe[0], read.append)) == []
        assert read == [b"a", b"b", b"c"]
        os.write(pipe[1], bytes(100))
        list(answers.receive(Loop().add_reader, pipe[0], read.append))
        assert 3 < len(read) < 50

    def test_the_loop_is_told_of_a_pipe_once(self, pipe: tuple[int, int]) -> None:
        loop = Loop()

        def handle(_fd: int) -> None: ...

        def receive(add_reader: Any, fd: int, _callback: Any) -> Iterator[None]:
            yield from ()
            os.read(fd, 1)
            add_reader(fd, handle, fd)

        answers = WholeAnswers(receive, lambda: None)
        for _ in range(3):
            os.write(pipe[1], b"ab")
            list(answers.receive(loop.add_reader, pipe[0], print))
        assert loop.added == [pipe[0]]
        loop.readers[pipe[0]] = (print, ())  # as when an answer comes in pieces
        os.write(pipe[1], b"a")
        list(answers.receive(loop.add_reader, pipe[0], print))
        assert loop.readers == {pipe[0]: (handle, (pipe[0],))}
