"""What becomes of tasks in real workers that are guarded: those that keep their word, and those that do not."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path

import psutil
import pytest
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from agentlink.broker.calls import DELIVERIES_HEADER
from agentlink.broker.profiles import profiles
from resource_guard.errors import TaskTooLarge
from tasks.base import BaseTask
from tasks.errors import MemoryLimitExceeded, ProcessDied
from tests.chaos import ledger
from tests.integration import hungry, sample
from tests.integration.system import System, Worker
from tests.waiting import wait_until
from workflows import StepState

MB = 1_000_000
#: A worker of two processes and its broker take 80 to 130 MB of it, and tasks may have what is left to 90 %.
MEMORY = "1000MB"
ENDED = "ended task"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The ledger."""
    path = tmp_path / "ledger"
    path.touch()
    return path


def start(system: System, *options: str, pool: str = "prefork", concurrency: int = 2, lease: str = "10s") -> Worker:
    imports = "tests.integration.sample,tests.integration.hungry"
    return system.start_worker(
        *options, pool=pool, concurrency=concurrency, lease=lease, imports=imports, memory=MEMORY, memory_free="0",
        cpu="100%",
    )  # fmt: skip


def keep_room_from_others(system: System, mb: int = 600) -> tuple[AsyncResult, Path]:
    """A task that has reserved so much, until the file that is returned with it is there."""
    task = {400: hungry.reserve_400_mb_until, 600: hungry.reserve_600_mb_until}[mb]
    release, started = system.folder / "release", system.folder / "started"
    result = task.delay(str(release), str(started))
    wait_until(started.exists, what="the task that keeps the room from others")
    return result, release


def each_ran_once(path: Path, results: list[AsyncResult]) -> None:
    numbers = [result.get(timeout=30) for result in results]
    attempts = ledger.read(path)
    assert sorted(attempts) == sorted(numbers)
    assert [len(tries) for tries in attempts.values()] == [1] * len(numbers)


def most_at_a_time(path: Path) -> int:
    """How many in the ledger were between their start and their end at once, at most."""
    attempts = [tries[-1] for tries in ledger.read(path).values()]
    times = [(one.started_at, 1) for one in attempts] + [(one.ended_at or 0.0, -1) for one in attempts]
    return max(itertools.accumulate(step for _, step in sorted(times)))


class TestAWordThatIsBroken:
    def test_a_task_that_takes_more_than_it_declares_fails_and_says_what_to_declare(self, system: System) -> None:
        """It is an error inside the task: its process goes on, and so does the worker."""
        worker = start(system)
        before = worker.children()
        with pytest.raises(MemoryLimitExceeded) as raised:
            hungry.take_though_100_are_declared.delay(400).get(timeout=20)
        error = raised.value
        assert (error.task, error.declared_bytes, error.next_bytes) == (
            "tests.integration.hungry.take_though_100_are_declared", 100 * MB, None,
        )  # fmt: skip
        assert error.allowed_bytes == 142 * MB
        assert 80 * MB <= error.used_bytes <= 142 * MB
        assert "wanted more than 142 MB, which is what @task(memory='100 MB') allows" in str(error)
        assert "declare what it takes at its peak" in str(error)
        assert hungry.take_though_100_are_declared.delay(80).get(timeout=10) == 4
        assert sorted(worker.children()) == sorted(before)

    def test_a_task_that_declares_more_than_there_is_fails_at_once(self, system: System) -> None:
        worker = start(system)
        with pytest.raises(TaskTooLarge, match="declares memory='50 GB'"):
            hungry.declare_50_gb.delay().get(timeout=10)
        assert sample.add.delay(1, 2).get(timeout=10) == 3
        assert worker.process.poll() is None

    @pytest.mark.parametrize("task", [hungry.start_programs, hungry.start_programs_once], ids=["late", "early"])
    def test_programs_that_a_task_has_started_count_and_end_with_it(
        self, system: System, tmp_path: Path, task: BaseTask
    ) -> None:
        """Each of them is within the cap that it inherits; together they are not."""
        worker = start(system)
        folder = tmp_path / "programs"
        folder.mkdir()
        with pytest.raises(MemoryLimitExceeded) as raised:
            task.delay(str(folder), 3).get(timeout=20)
        assert raised.value.used_bytes > 142 * MB
        pids = [int(file.name) for file in folder.iterdir()]
        assert pids
        wait_until(lambda: not any(map(psutil.pid_exists, pids)), what=f"the end of {pids}")
        worker.wait_for_log(ENDED)
        assert sample.add.delay(1, 2).get(timeout=10) == 3
        wait_until(lambda: len(worker.children()) == 2, what="a whole pool")

    def test_a_broker_that_is_full_does_not_end_the_worker_that_has_to_tell_it(
        self, system: System, tmp_path: Path
    ) -> None:
        """The failure can't be stored now; the task goes back to its queue, and fails when it can."""
        worker = start(system)
        folder = tmp_path / "programs"
        folder.mkdir()
        result = hungry.start_programs.delay(str(folder), 3)
        wait_until(lambda: list(folder.iterdir()), what="the programs")
        before = system.client.config_get("maxmemory")["maxmemory"]
        system.client.config_set("maxmemory", 1)
        try:
            worker.wait_for_log("since that can't be stored now")
        finally:
            system.client.config_set("maxmemory", before)
        with pytest.raises(MemoryLimitExceeded):
            result.get(timeout=20)
        assert worker.process.poll() is None


class TestATaskThatNobodyKnows:
    def test_it_is_tried_again_with_more_and_that_is_no_attempt(self, system: System) -> None:
        """All that others had not reserved was too little; when there is more it completes."""
        worker = start(system)
        keeper, release = keep_room_from_others(system, 400)
        run = hungry.takes.delay(500)
        worker.wait_for_log("it runs again when there is room for")
        assert not run.ready()
        release.touch()
        assert keeper.get(timeout=10) is None
        assert run.get(timeout=20) == 25
        steps = run.steps()
        assert [step.name.rsplit(".")[-1] for step in steps] == ["take", "add"]
        assert {(step.state, step.attempt) for step in steps} == {(StepState.SUCCEEDED, 1)}
        assert len(worker.children()) == 2

    def test_one_that_is_evicted_comes_back_and_completes_alone(self, system: System, path: Path) -> None:
        """Two of them together are over the hard mark, which no cap of a process sees: one goes, and comes again."""
        worker = start(system)
        go = system.folder / "go"
        results = [hungry.share.delay(number, str(path), 500, str(go)) for number in range(2)]
        worker.wait_for_log(ENDED)
        go.touch()
        assert [result.get(timeout=30) for result in results] == [0, 1]
        attempts = ledger.read(path)
        assert sorted(len(tries) for tries in attempts.values()) == [1, 2]
        assert most_at_a_time(path) == 1
        assert worker.log.count(ENDED) == 1
        assert "ProcessDied" not in worker.log

    def test_one_that_wants_more_than_all_there_is_has_failed(self, system: System) -> None:
        start(system)
        with pytest.raises(MemoryLimitExceeded, match="which is all there is for tasks"):
            hungry.take.delay(1200).get(timeout=20)
        assert sample.add.delay(1, 2).get(timeout=10) == 3

    def test_what_it_takes_is_learned(self, system: System) -> None:
        worker = start(system)
        for _ in range(3):
            hungry.take.delay(200).get(timeout=10)
        worker.stop()
        [known] = [one for one in profiles(system.client) if one.name == hungry.take.name]
        assert known.runs == 3
        assert 190 * MB < known.peak_bytes < 260 * MB
        assert known.peak_bytes <= known.memory_bytes < 2 * known.peak_bytes


class TestWhatFits:
    def test_two_that_do_not_fit_together_never_run_together(self, system: System, path: Path) -> None:
        start(system)
        results = [hungry.enter_with_600_mb.delay(number, str(path), 0.3) for number in range(4)]
        each_ran_once(path, results)
        assert most_at_a_time(path) == 1

    def test_those_that_fit_run_together(self, system: System, path: Path) -> None:
        start(system)
        results = [hungry.enter_with_200_mb.delay(number, str(path), 0.5) for number in range(4)]
        each_ran_once(path, results)
        assert most_at_a_time(path) == 2

    def test_a_small_one_passes_a_large_one_that_has_to_wait(self, system: System, path: Path) -> None:
        start(system)
        keeper, release = keep_room_from_others(system)
        large = hungry.enter_with_600_mb.delay(0, str(path), 0.0)
        assert sample.add.delay(1, 2).get(timeout=10) == 3
        assert not large.ready()
        release.touch()
        keeper.get(timeout=10)
        each_ran_once(path, [large])

    def test_what_waits_starts_by_priority(self, system: System, path: Path) -> None:
        start(system)
        keeper, release = keep_room_from_others(system)
        results = []
        for number, priority in enumerate([0, 5, 9, 5]):
            results.append(hungry.enter_with_600_mb.apply_async((number, str(path), 0.0), priority=priority))
            wait_until(lambda count=number + 2: system.in_flight() == count, what="the message in hand")  # type: ignore[misc]
        release.touch()
        keeper.get(timeout=10)
        each_ran_once(path, results)
        attempts = [tries[0] for tries in ledger.read(path).values()]
        assert [one.number for one in sorted(attempts, key=lambda one: one.started_at)] == [2, 1, 3, 0]

    def test_a_run_of_few_steps_does_not_wait_for_one_of_many(self, system: System, path: Path) -> None:
        start(system)
        keeper, release = keep_room_from_others(system)
        many = hungry.enters.delay(list(range(12)), str(path))
        wait_until(lambda: system.in_flight() == 13, what="the run of many steps in hand")
        few = hungry.enters.delay([100, 101], str(path))
        wait_until(lambda: system.in_flight() == 15, what="the run of few")
        release.touch()
        keeper.get(timeout=10)
        assert few.get(timeout=20) == [100, 101]
        assert many.get(timeout=20) == list(range(12))
        attempts = sorted((tries[0] for tries in ledger.read(path).values()), key=lambda one: one.started_at)
        assert {100, 101} <= {one.number for one in attempts[:5]}


class TestWhatWaitsToStart:
    """It is in the hand of its worker, and has not been started."""

    def _waiting(self, system: System, path: Path, count: int = 3) -> list[AsyncResult]:
        results = [hungry.enter_with_600_mb.delay(number, str(path), 0.0) for number in range(count)]
        wait_until(lambda: system.in_flight() == count + 1, what="the messages in hand")
        return results

    def test_a_worker_that_is_asked_to_end_gives_it_back_at_once(self, system: System, path: Path) -> None:
        ending = start(system)
        keeper, release = keep_room_from_others(system)
        results = self._waiting(system, path)
        ending.process.terminate()
        wait_until(lambda: system.in_flight() == 1, what="the messages' return")
        start(system)
        each_ran_once(path, results)
        assert not keeper.ready()
        release.touch()
        assert keeper.get(timeout=10) is None
        assert ending.process.wait(timeout=20) == 0

    def test_of_a_worker_that_is_killed_it_goes_to_another(self, system: System, path: Path) -> None:
        killed = start(system, lease="1s")
        keeper, release = keep_room_from_others(system)
        results = self._waiting(system, path)
        killed.kill()
        release.touch()
        start(system, lease="1s")
        each_ran_once(path, results)
        assert keeper.get(timeout=10) is None

    def test_a_broker_that_restarts_loses_none_and_doubles_none(self, system: System, path: Path) -> None:
        """The connection's end takes what waits away; it comes again with the next one."""
        worker = start(system)
        keeper, release = keep_room_from_others(system)
        results = self._waiting(system, path)
        system.restart_broker()
        worker.wait_for_log("Connected to", times=2)
        release.touch()
        each_ran_once(path, results)
        assert keeper.get(timeout=10) is None

    def test_a_worker_with_a_free_place_has_what_only_waits_in_one_without(self, system: System, path: Path) -> None:
        """It was taken to find one that fits beside the large one; one did, and that goes on for long."""
        start(system)
        keeper, release = keep_room_from_others(system)
        large = hungry.enter_with_600_mb.delay(0, str(path), 0.0)
        wait_until(lambda: system.in_flight() == 2, what="the large one in hand")
        both_busy = system.folder / "both-busy"
        long = sample.wait_for_file.delay(str(release), started=str(both_busy))
        small = [sample.add.delay(number, 1) for number in range(10)]
        wait_until(both_busy.exists, what="the one that fits")
        start(system)
        assert [result.get(timeout=15) for result in small] == list(range(1, 11))
        assert not long.ready()
        release.touch()
        assert [result.get(timeout=15) for result in (keeper, long, large)] == [None, 0, 0]

    def test_a_revoked_one_never_runs_and_frees_its_place(self, system: System, path: Path) -> None:
        start(system)
        keeper, release = keep_room_from_others(system)
        revoked, *others = self._waiting(system, path)
        done = system.python(f"from tasks import app\nassert app.control.revoke({revoked.id!r}, reply=True)")
        assert done.returncode == 0, done.stderr
        release.touch()
        keeper.get(timeout=10)
        with pytest.raises(TaskRevokedError):
            revoked.get(timeout=10)
        each_ran_once(path, others)

    def test_one_that_has_killed_enough_workers_frees_its_place_too(self, system: System, path: Path) -> None:
        """It becomes a dead letter as its turn comes; each process would be waited for if it kept its own."""
        start(system, concurrency=1)
        poison = [
            hungry.enter_with_600_mb.apply_async((number, str(path), 0.0), headers={DELIVERIES_HEADER: 3})
            for number in range(2)
        ]
        for result in poison:
            with pytest.raises(ProcessDied):
                result.get(timeout=10)
        assert hungry.enter_with_600_mb.delay(2, str(path), 0.0).get(timeout=10) == 2
        assert list(ledger.read(path)) == [2]


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_tasks_without_processes_of_their_own_are_planned_and_not_capped(system: System, path: Path, pool: str) -> None:
    """What one of several threads takes can't be told; that what is declared fits can."""
    worker = start(system, pool=pool)
    assert hungry.take_though_100_are_declared.delay(400).get(timeout=20) == 20
    results = [hungry.enter_with_600_mb.delay(number, str(path), 0.1) for number in range(3)]
    each_ran_once(path, results)
    assert most_at_a_time(path) == 1
    with pytest.raises(TaskTooLarge):
        hungry.declare_50_gb.delay().get(timeout=10)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(timeout=20) == 0
