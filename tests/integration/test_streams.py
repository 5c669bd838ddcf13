"""What steps tell while they run, as others see it: live or later, from any process, whatever is killed meanwhile."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import TimeoutError as CeleryTimeoutError

from agentlink.broker.streams import stream_key
from tests.integration import talking
from tests.integration.system import System
from tests.waiting import wait_until
from workflows import RunUnknown, StreamItem, WorkflowRun

IMPORTS = "tests.integration.sample,tests.integration.talking"


class Reader:
    """Reads a run's stream in a thread of its own."""

    def __init__(self, run_id: str) -> None:
        self.items: list[StreamItem] = []
        self.error: BaseException | None = None
        self._run = WorkflowRun(run_id)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def data(self) -> list[Any]:
        return [item.data for item in self.items]

    def wait_for(self, *data: Any) -> None:
        wait_until(lambda: self.data == list(data), what=f"{data} in place of {self.data}")

    def wait_for_end(self, timeout_s: float = 20) -> None:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"it goes on after {self.data[-10:]}"
        if self.error:
            raise self.error

    def _read(self) -> None:
        try:
            for item in self._run.stream():
                self.items.append(item)
        except BaseException as error:  # noqa: BLE001 - raised where the reader is waited for
            self.error = error


@pytest.fixture
def _worker(system: System) -> None:
    system.start_worker(imports=IMPORTS)


@pytest.fixture
def release(tmp_path: Path) -> Callable[[str], None]:
    return lambda name: (tmp_path / name).touch()


@pytest.mark.usefixtures("_worker")
class TestReading:
    def test_two_readers_see_the_same_live_and_the_late_one_all_of_it(
        self, tmp_path: Path, release: Callable[[str], None]
    ) -> None:
        run = talking.speaking.delay(str(tmp_path), ["one", "two", "three"])
        early = Reader(run.id)
        release("one")
        early.wait_for("one")
        late = Reader(run.id)
        late.wait_for("one")
        release("two")
        early.wait_for("one", "two")
        late.wait_for("one", "two")
        release("three")
        release("end")
        assert run.get(timeout=20) == 2
        for reader in (early, late, Reader(run.id)):
            reader.wait_for_end()
            assert reader.data == ["one", "two", "three"]
        assert run.text() == "onetwothree"

    def test_progress_message_and_log_are_seen_while_a_step_runs(
        self, tmp_path: Path, release: Callable[[str], None]
    ) -> None:
        run = talking.speaking.delay(str(tmp_path), ["one", "two"])
        release("one")
        wait_until(lambda: run.progress.message == "said one", what="the first message", timeout_s=20)
        assert run.progress.fraction == pytest.approx(0.25)
        assert (run.steps()[0].progress, run.steps()[0].message) == (0.5, "said one")
        assert [line.data for line in run.logs()] == ["said one"]
        release("two")
        release("end")
        run.get(timeout=20)
        assert [line.data for line in run.logs()] == ["said one", "said two"]
        assert (run.progress.fraction, run.progress.left_s, run.progress.message) == (1.0, 0.0, "said two")

    def test_a_workflow_that_is_a_step_counts_as_far_as_it_has_come(
        self, tmp_path: Path, release: Callable[[str], None]
    ) -> None:
        run = talking.outer.delay(str(tmp_path), ["one", "two"])
        release("one")
        wait_until(lambda: run.progress.message == "said one", what="the inner run's message", timeout_s=20)
        assert run.progress.fraction == pytest.approx(0.125)  # half of a half of a half
        inner = WorkflowRun(run.steps()[0].id)
        assert [line.data for line in inner.logs()] == ["said one"]
        release("two")
        release("end")
        run.get(timeout=20)
        assert (inner.text(), run.text(), run.progress.fraction) == ("onetwo", "", 1.0)

    def test_ten_thousand_parts_in_a_loop_are_quick_complete_and_in_order(self) -> None:
        run = talking.counting.delay(10_000)
        reader = Reader(run.id)
        took_ms = run.get(timeout=40)
        reader.wait_for_end()
        assert reader.data == list(range(10_000))
        assert took_ms < 5_000

    def test_a_thread_with_the_context_of_its_step_tells_for_it(self, system: System) -> None:
        run = talking.said_in_threads.delay()
        assert [item.data for item in run.stream(timeout=20)] == ["known", "own"]
        run.get(timeout=20)
        assert system.workers[0].log.count("in a thread of which no step is known") == 1

    def test_parts_of_one_step_come_before_those_of_the_next(self) -> None:
        run = talking.counting.delay(700, 3, 50)
        run.get(timeout=20)
        assert [item.data for item in run.stream()] == list(range(753))
        assert len({item.step_id for item in run.stream()}) == 3

    def test_each_of_the_steps_side_by_side_is_in_order(self) -> None:
        run = talking.side_by_side.delay(600, 600)
        run.get(timeout=20)
        items = list(run.stream())
        for step_id in {item.step_id for item in items}:
            assert [item.data for item in items if item.step_id == step_id] == list(range(600))
        assert len(items) == 1200

    def test_a_step_that_fails_is_heard_out_and_ends_the_stream(self) -> None:
        run = talking.failing.delay()
        reader = Reader(run.id)
        reader.wait_for_end()
        assert reader.data == ["last words"]
        assert [line.data for line in run.logs()] == ["this will not do"]
        assert run.progress.state == "FAILED"
        assert 0 < run.progress.fraction < 1

    def test_a_run_that_emits_nothing_ends_its_stream_too(self) -> None:
        run = talking.counting.delay(0)
        assert list(run.stream()) == []
        assert run.progress.ended

    def test_another_attempt_is_told_from_the_first(self) -> None:
        run = talking.retrying.delay()
        run.get(timeout=20)
        assert [(item.attempt, item.data) for item in run.stream()] == [(1, "attempt 0"), (2, "attempt 1")]
        assert run.text() == "attempt 1"

    def test_what_replaces_a_step_goes_on_with_its_text(self) -> None:
        run = talking.replacing.delay()
        run.get(timeout=20)
        assert run.text() == "before then after!"

    def test_too_much_at_once_fails_the_step_and_says_how_to_do_it(self) -> None:
        with pytest.raises(Exception, match="emit it in parts"):
            talking.much.delay(300_000).get(timeout=20)

    def test_a_step_whose_time_is_up_is_heard_out_without_a_gap(self) -> None:
        """The time limit comes at any point of the loop."""
        run = talking.endless.delay()
        with pytest.raises(Exception, match="SoftTimeLimitExceeded"):
            run.get(timeout=20)
        data = [item.data for item in run.stream()]
        assert len(data) > 500
        assert data == list(range(data[0], data[0] + len(data)))  # of so much, the oldest may be gone

    def test_a_step_whose_memory_is_capped_has_room_to_speak(self) -> None:
        run = talking.in_little_room.delay(["a", "b", "c"])
        run.get(timeout=20)
        assert [item.data for item in run.stream()] == ["a", "b", "c"]
        # Said a tenth of a second apart, they are entries of their own: they did not wait for the end.
        assert run.backend.client.xlen(stream_key(run.id)) == 3 + len(["end"])

    def test_a_task_in_no_run_may_tell_too(self, system: System) -> None:
        assert talking.say.delay("hello").get(timeout=20) == "hello"
        assert not list(system.client.scan_iter("agentlink:run:*"))

    def test_the_time_that_earlier_runs_took_tells_what_is_left(
        self, tmp_path: Path, release: Callable[[str], None]
    ) -> None:
        first = talking.speaking.delay(str(tmp_path), [])
        assert first.progress.left_s is None
        release("end")
        first.get(timeout=20)
        record = first.record()
        took_s = (record.ended_at or 0) - (record.started_at or 0)
        again = talking.speaking.delay(str(tmp_path / "nowhere"), ["one"])
        assert again.progress.left_s == pytest.approx(took_s, abs=0.002)


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_steps_in_other_pools_tell_as_well(system: System, pool: str) -> None:
    system.start_worker(pool=pool, imports=IMPORTS)
    run = talking.side_by_side.delay(600, 600)
    run.get(timeout=20)
    items = list(run.stream())
    assert len(items) == 1200
    for step_id in {item.step_id for item in items}:
        assert [item.data for item in items if item.step_id == step_id] == list(range(600))


def test_a_run_nobody_knows(system: System) -> None:
    for read in (lambda run: list(run.stream()), lambda run: run.logs(), lambda run: run.text()):
        with pytest.raises(RunUnknown):
            read(WorkflowRun("nothing"))


def test_a_reader_that_hears_nothing_gives_up_in_time(system: System) -> None:
    run = talking.counting.delay(1)
    with pytest.raises(CeleryTimeoutError, match="put out nothing for"):
        list(run.stream(timeout=0.2))


def test_a_killed_process_says_what_it_said_and_the_next_begins_again(
    system: System, tmp_path: Path, release: Callable[[str], None]
) -> None:
    system.start_worker(imports=IMPORTS)
    run = talking.dying.delay(str(tmp_path / "marker"))
    reader = Reader(run.id)
    reader.wait_for("first", " try")
    wait_until(lambda: run.progress.fraction > 0, what="its progress")
    before = run.progress.fraction
    release("marker-arrived")
    reader.wait_for("first", " try", "second", " try")
    wait_until(lambda: run.steps()[0].progress == 0.2, what="the second attempt's progress")
    assert WorkflowRun(run.id).progress.fraction == run.progress.fraction == before
    release("marker-end")
    run.get(timeout=20)
    reader.wait_for_end()
    assert [item.attempt for item in reader.items] == [1, 1, 2, 2]
    assert run.text() == "second try"


def test_a_killed_worker_says_what_it_said_and_another_begins_again(
    system: System, tmp_path: Path, release: Callable[[str], None]
) -> None:
    worker = system.start_worker(imports=IMPORTS, lease="1s")
    run = talking.dying.delay(str(tmp_path / "marker"))
    reader = Reader(run.id)
    reader.wait_for("first", " try")
    worker.kill()
    system.start_worker(imports=IMPORTS, lease="1s")
    release("marker-end")
    assert run.get(timeout=30) == 2
    reader.wait_for_end()
    assert reader.data == ["first", " try", "second", " try"]
    assert [item.attempt for item in reader.items] == [1, 1, 2, 2]


def test_a_broker_that_is_killed_and_comes_back_loses_nothing(
    system: System, tmp_path: Path, release: Callable[[str], None]
) -> None:
    system.start_worker(imports=IMPORTS)
    run = talking.speaking.delay(str(tmp_path), ["one", "two", "three"])
    reader = Reader(run.id)
    release("one")
    reader.wait_for("one")
    system.restart_broker()
    release("two")
    release("three")
    release("end")
    assert run.get(timeout=30) == 2
    reader.wait_for_end()
    assert reader.data == ["one", "two", "three"]


def test_what_is_said_while_the_broker_is_frozen_waits_for_it(system: System) -> None:
    """A broker that does not answer for a while: nothing is lost, nothing is there twice."""
    system.start_worker(imports=IMPORTS)
    run = talking.counting.delay(100_000)
    reader = Reader(run.id)
    wait_until(lambda: reader.items, what="the first part", timeout_s=20)
    with system.frozen_broker():
        threading.Event().wait(0.5)
    run.get(timeout=40)
    reader.wait_for_end()
    assert reader.data == list(range(100_000))


def test_another_process_reads_it(system: System) -> None:
    system.start_worker(imports=IMPORTS)
    run = talking.counting.delay(5)
    script = f"from workflows import WorkflowRun; print([item.data for item in WorkflowRun({run.id!r}).stream()])"
    other = system.python(script)
    assert (other.stdout, other.stderr) == ("[0, 1, 2, 3, 4]\n", "")


def test_a_full_broker_makes_output_wait_and_loses_progress_only(
    system: System, tmp_path: Path, release: Callable[[str], None]
) -> None:
    worker = system.start_worker(imports=IMPORTS)
    run = talking.speaking.delay(str(tmp_path), ["one", "two"])
    reader = Reader(run.id)
    release("one")
    reader.wait_for("one")
    client = system.client
    before = client.config_get("maxmemory")["maxmemory"]
    client.config_set("maxmemory", 1)
    try:
        release("two")
        release("end")
        worker.wait_for_log("waits with its output")
        assert reader.data == ["one"]
    finally:
        client.config_set("maxmemory", before)
    assert run.get(timeout=30) == 2
    reader.wait_for_end()
    assert reader.data == ["one", "two"]


def test_a_superseded_worker_says_no_more(system: System, tmp_path: Path, release: Callable[[str], None]) -> None:
    """A worker that was stopped for longer than its lease goes on, while another has the step."""
    slow = system.start_worker(imports=IMPORTS, lease="1s")
    run = talking.speaking.delay(str(tmp_path), ["one", "two"])
    reader = Reader(run.id)
    release("one")
    reader.wait_for("one")
    stopped = [slow.pid, *slow.children()]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    system.start_worker(imports=IMPORTS, lease="1s")
    reader.wait_for("one", "one")
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    release("two")
    release("end")
    assert run.get(timeout=30) == 2
    reader.wait_for_end()
    assert [(item.attempt, item.data) for item in reader.items] == [(1, "one"), (2, "one"), (2, "two")]
