"""The guard through Celery's remote control."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker.control import Panel

from resource_guard.control import guard_limits, guard_pause, guard_resume, parse_limits, report_guard
from resource_guard.limits import Limits
from resource_guard.steering import Orders, Steering

OFF = {"state": "off"}


class Worker:
    """A worker's state as commands get it; `ordered` is what was given to the broker to keep."""

    def __init__(self, *, guarded: bool = True) -> None:
        self.ordered: list[Orders] = []
        guard = SimpleNamespace(
            steering=Steering(), limits=Limits(memory_bytes=1_000_000_000), status=lambda: {"state": "ok"}
        )
        controller = SimpleNamespace(guard_broker=SimpleNamespace(order=self._order))
        if guarded:
            controller.resource_guard = guard
        self.steering = guard.steering
        self.consumer = SimpleNamespace(controller=controller)

    def _order(self, change: Callable[[Orders], Orders]) -> Orders:
        self.ordered.append(change(self.ordered[-1] if self.ordered else Orders()))
        return self.ordered[-1]


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.mark.parametrize(
    ("words", "limits"),
    [
        ([], {}),
        (["memory=6GB"], {"memory": 6_000_000_000}),
        (["memory=512MiB", "cpu=50%"], {"memory": 512 * 1024**2, "cpu": 0.5}),
        (["processes=300", "memory_free=0"], {"processes": 300, "memory_free": 0}),
    ],
)
def test_limits_are_read_from_words(words: list[str], limits: dict[str, float]) -> None:
    assert parse_limits(words) == limits


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("memory", "want RESOURCE=LIMIT, as memory=6GB, with one of memory, memory_free, cpu.*; got 'memory'"),
        ("tokens=5", "got 'tokens=5'"),
        ("memory=much", "memory: want a size like 8GB or 512MiB, got 'much'"),
        ("cpu=300%", "cpu: "),
        ("processes=1.5", r"processes: want a whole number, got '1\.5'"),
        ("processes=", "processes: want a whole number, got ''"),
    ],
)
def test_what_is_wrong_with_a_word_is_said(word: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_limits([word])


class TestACommand:
    @pytest.mark.parametrize("name", ["guard", "guard_pause", "guard_resume", "guard_limits"])
    def test_every_worker_knows_it_by_its_name(self, name: str) -> None:
        assert Panel.meta[name].type == ("inspect" if name == "guard" else "control")

    def test_of_a_worker_without_a_guard_says_so_and_orders_nothing(self) -> None:
        worker = Worker(guarded=False)
        assert [report_guard(worker), guard_pause(worker), guard_resume(worker), guard_limits(worker)] == [OFF] * 4
        assert worker.ordered == []

    def test_a_pause_holds_here_at_once_and_is_kept_for_others(self, worker: Worker) -> None:
        answer = guard_pause(worker, "for lunch")
        assert answer == {"ok": "as from the next look", "state": "paused"}
        assert worker.steering.pause_reason() == "paused by hand: for lunch"
        assert worker.ordered == [Orders(paused=True, reason="for lunch")]

    def test_a_pause_may_have_an_end(self, worker: Worker) -> None:
        guard_pause(worker, "for lunch", "10m")
        [orders] = worker.ordered
        assert orders.until == pytest.approx(time.time() + 600, abs=5)

    def test_a_duration_that_is_none_pauses_nothing(self, worker: Worker) -> None:
        assert "'soon'" in str(guard_pause(worker, "", "soon")["error"])
        assert worker.ordered == []
        assert worker.steering.pause_reason() == ""

    def test_resume_leaves_no_trace_of_the_pause_and_keeps_the_limits(self, worker: Worker) -> None:
        guard_limits(worker, ["memory=6GB"])
        guard_pause(worker, "for lunch", "10m")
        assert guard_resume(worker) == {"ok": "as from the next look", "state": "running"}
        assert worker.ordered[-1] == Orders(limits={"memory": 6_000_000_000})

    def test_limits_add_up_and_none_at_all_takes_them_back(self, worker: Worker) -> None:
        """One word comes as a string: Celery's command line does so where there is one."""
        guard_limits(worker, "memory=6GB")
        guard_limits(worker, ["cpu=50%", "memory=7GB"])
        assert worker.ordered[-1].limits == {"memory": 7_000_000_000, "cpu": 0.5}
        guard_limits(worker)
        assert worker.ordered[-1].limits == {}

    @pytest.mark.parametrize("word", ["memory=much", "memory=0", "broker_memory=1GB"])
    def test_limits_that_can_not_be_held_are_not_ordered(self, worker: Worker, word: str) -> None:
        """The numbers themselves, and what they would be together with the others."""
        assert guard_limits(worker, [word]).keys() == {"error"}
        assert worker.ordered == []

    def test_inspect_answers_what_the_guard_says(self, worker: Any) -> None:
        assert report_guard(worker) == {"state": "ok"}
