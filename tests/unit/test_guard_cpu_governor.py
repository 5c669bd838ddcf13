"""How CPU is held at its limit by either of two means, on real processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from resource_guard.cpu_governor import CpuGovernor
from resource_guard.cpu_quota import PERIOD_US, CpuQuota, remove_leftovers
from resource_guard.duty import DutyCycle
from tests.process_tree import alive
from tests.waiting import wait_until

ALLOWED_CORES = 1.2
#: For real processes: less than even a busy machine has to spare.
FEW_CORES = 0.3
TICK_S = 0.1
#: Hashing lets go of Python's lock, so that each thread keeps a core busy. A child of its own does nothing.
BURN = """
import hashlib, subprocess, threading
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
def burn():
    while True: hashlib.sha256(bytes(1_000_000))
for _ in range({threads}): threading.Thread(target=burn).start()
child.wait()
"""

Burn = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def burn() -> Iterator[Burn]:
    """Start a process with threads that take all the CPU there is, and a child; 0 threads: an idle one."""
    started: list[subprocess.Popen[bytes]] = []
    children: list[psutil.Process] = []

    def burn(threads: int) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", BURN.format(threads=threads)]))
        children.extend(wait_until(psutil.Process(started[-1].pid).children, what="a child"))
        return started[-1]

    yield burn
    for child in children:
        child.kill()
    for process in started:
        process.kill()
        process.wait()


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    root = psutil.Process(process.pid)
    return [root, *root.children(recursive=True)]


def stopped(process: subprocess.Popen[bytes]) -> list[bool]:
    return [one.status() == psutil.STATUS_STOPPED for one in family(process)]


def govern(governor: CpuGovernor, pid: int, for_s: float) -> float:
    """Let a governor tick on a process for some seconds; the cores that it used in the second half of that time."""
    looks: list[tuple[float, float]] = []
    while not looks or looks[-1][0] < looks[0][0] + for_s:
        looks.append((time.monotonic(), cpu_s(pid)))
        governor.tick(looks[-1][0], {pid: looks[-1][1]}, 0.0)
        time.sleep(TICK_S)
    (half_at, half_s), (end_at, end_s) = looks[len(looks) // 2], looks[-1]
    return (end_s - half_s) / (end_at - half_at)


@pytest.fixture
def quota() -> Iterator[CpuQuota]:
    quota = CpuQuota.open()
    if quota is None:
        pytest.skip("no control group can be made here: that takes root with version 1, a delegated one with version 2")
    yield quota
    quota.close()
    assert not quota.folder.exists()


@pytest.mark.hogs
def test_a_quota_holds_four_threads_at_a_fraction_of_a_core(quota: CpuQuota, burn: Burn) -> None:
    """With whatever they have started, before or after. Were they free, they would take all the machine can spare."""
    process = burn(threads=4)
    cores = govern(CpuGovernor(lambda: FEW_CORES, list, lambda: quota), process.pid, for_s=4)
    assert cores <= FEW_CORES * 1.15
    throttled = dict(line.split() for line in (quota.folder / "cpu.stat").read_text().splitlines())
    assert int(throttled["nr_throttled"]) > 0
    inside = set(map(int, (quota.folder / "cgroup.procs").read_text().split()))
    assert inside == {one.pid for one in family(process)}
    quota.close()
    assert Path(f"/proc/{process.pid}/cgroup").read_text() == Path("/proc/self/cgroup").read_text()


@pytest.mark.hogs
def test_there_is_enough_quota_while_one_is_to_end(quota: CpuQuota, burn: Burn) -> None:
    """A killed process, too, needs CPU time to give back its memory."""
    leaving, other = burn(1), burn(1)
    pids = [leaving.pid, other.pid]
    quota.hold(0.0, FEW_CORES, pids)
    assert quota_cores(quota) == pytest.approx(FEW_CORES)
    quota.let_go(leaving.pid, 1.5 * FEW_CORES)
    assert quota_cores(quota) == pytest.approx(FEW_CORES), "each new quota gives all of it at once"
    quota.let_go(leaving.pid, 3 * FEW_CORES)
    quota.hold(2.0, FEW_CORES, pids)
    assert quota_cores(quota) == pytest.approx(3 * FEW_CORES)
    quota.hold(2.1, FEW_CORES, [other.pid])
    assert quota_cores(quota) == pytest.approx(FEW_CORES)


def quota_cores(quota: CpuQuota) -> float:
    version_1, version_2 = quota.folder / "cpu.cfs_quota_us", quota.folder / "cpu.max"
    return int((version_1 if version_1.exists() else version_2).read_text().split()[0]) / PERIOD_US


def test_groups_of_dead_workers_are_removed(quota: CpuQuota) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    left_behind, other = quota.folder.parent / f"agentlink-{dead.pid}", quota.folder.parent / "agentlink-other"
    left_behind.mkdir()
    other.mkdir()
    try:
        remove_leftovers(quota.folder.parent)
        assert not left_behind.exists()
        assert quota.folder.exists()
        assert other.exists()
    finally:
        other.rmdir()


@pytest.fixture
def version_2(tmp_path: Path) -> Path:
    """A made `/proc` of a process in a delegated group of version 2."""
    group = tmp_path / "cgroups/app.slice/agents"
    group.mkdir(parents=True)
    (group / "cgroup.subtree_control").write_text("cpu memory")
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text("0::/user/app.slice/agents\n")
    mount = f"31 23 0:28 /user {tmp_path}/cgroups rw,relatime shared:9 - cgroup2 cgroup2 rw\n"
    (proc / "self/mountinfo").write_text("23 1 0:2 / / rw - ext4 /dev/root rw\n" + mount)
    return proc


def test_a_delegated_group_of_version_2_is_used(version_2: Path, tmp_path: Path) -> None:
    group = tmp_path / f"cgroups/app.slice/agents/agentlink-{os.getpid()}"
    group.mkdir()
    (group / "cpu.max").write_text("max 100000")
    (group / "cgroup.procs").touch()
    quota = CpuQuota.open(version_2)
    assert quota
    quota.hold(0.0, 0.5, [])
    assert (group / "cpu.max").read_text().splitlines()[0] == "50000 100000"


def test_without_a_controller_there_is_no_quota(version_2: Path) -> None:
    assert CpuQuota.open(version_2) is None


@pytest.mark.hogs
def test_the_duty_cycle_lets_busy_processes_run_for_their_part_of_the_time(burn: Burn) -> None:
    """All of a task's processes, and within five points of what is wanted."""
    process = burn(threads=2)
    duty = DutyCycle(lambda: [process.pid])
    duty.run_for(0.6)
    try:
        wait_until(lambda: stopped(process) == [True, True], what="a pause")
        wait_until(lambda: stopped(process) == [False, False], what="the end of a pause")
        began, before_s = time.monotonic(), duty.stopped_s(process.pid)
        time.sleep(3)
        stopped_fraction = (duty.stopped_s(process.pid) - before_s) / (time.monotonic() - began)
    finally:
        duty.close()
    assert stopped_fraction == pytest.approx(0.4, abs=0.05)
    assert stopped(process) == [False, False]


@pytest.mark.hogs
def test_the_duty_cycle_holds_four_threads_at_a_fraction_of_a_core(burn: Burn) -> None:
    process = burn(threads=4)
    governor = CpuGovernor(lambda: FEW_CORES, lambda: [process.pid], lambda: None)
    try:
        # In two seconds, on a machine that has now more and now less to spare; in ten it is more exact.
        assert govern(governor, process.pid, for_s=4) <= FEW_CORES * 1.25
        assert governor.stopped_s(process.pid) > 0.1
    finally:
        governor.stop()


@pytest.mark.hogs
def test_an_idle_process_is_never_stopped(burn: Burn) -> None:
    """A message that has been written to a stopped one would wait with it."""
    busy, idle = burn(threads=1), burn(threads=0)
    duty = DutyCycle(lambda: [busy.pid])
    duty.run_for(0.1)
    try:
        wait_until(lambda: duty.stopped_s(busy.pid) > 0.5, what="some pauses")
        assert duty.stopped_s(idle.pid) == 0
    finally:
        duty.close()


@pytest.mark.hogs
def test_a_process_that_is_busy_no_more_runs_on(burn: Burn) -> None:
    process, busy = burn(threads=1), set[int]()
    busy.add(process.pid)
    duty = DutyCycle(lambda: busy)
    duty.run_for(0.05)
    try:
        wait_until(lambda: any(stopped(process)), what="a pause")
        busy.clear()
        wait_until(lambda: not any(stopped(process)), what="the end of the pause")
        before_s = duty.stopped_s(process.pid)
        time.sleep(0.3)
        assert duty.stopped_s(process.pid) == before_s
    finally:
        duty.close()


@pytest.mark.hogs
def test_one_that_is_to_be_ended_is_let_go_at_once(burn: Burn) -> None:
    """It could not end while it is stopped. The others go on as before."""
    process, other = burn(threads=1), burn(threads=1)
    duty = DutyCycle(lambda: [process.pid, other.pid])
    duty.run_for(0.05)
    try:
        wait_until(lambda: any(stopped(process)), what="a pause")
        duty.let_go(process.pid)
        assert not any(stopped(process))
        before_s, others_s = duty.stopped_s(process.pid), duty.stopped_s(other.pid)
        wait_until(lambda: duty.stopped_s(other.pid) > others_s + 0.2, what="more pauses")
        assert duty.stopped_s(process.pid) == before_s
    finally:
        duty.close()


@pytest.mark.hogs
def test_an_error_of_its_own_leaves_nobody_stopped(burn: Burn, caplog: pytest.LogCaptureFixture) -> None:
    """And it goes on with a later look."""
    process, calls = burn(threads=1), list[int]()

    def busy() -> list[int]:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("of its own")
        return [process.pid]

    duty = DutyCycle(busy)
    duty.run_for(0.05)
    try:
        wait_until(lambda: len(calls) == 3, what="the error")
        wait_until(lambda: not any(stopped(process)), what="the end of the pause")
        assert "is tried again" in caplog.text
        before_s = duty.stopped_s(process.pid)

        def goes_on() -> bool:
            duty.run_for(0.05)  # as each look does
            return duty.stopped_s(process.pid) > before_s

        wait_until(goes_on, what="another pause")
    finally:
        duty.close()


WORKER = """
import subprocess, sys, time
from resource_guard.duty import DutyCycle
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
duty = DutyCycle(lambda: [child.pid])
duty.run_for(0.05)
child.wait()
"""


@dataclass(frozen=True)
class Worker:
    process: psutil.Process
    #: What runs a task, and what that has started.
    tasks: list[psutil.Process]

    def continuer(self) -> int:
        """The pid of the process that would continue the tasks, waited for."""

        def pids() -> list[int]:
            found = []
            for one in self.process.children():
                with contextlib.suppress(psutil.Error):
                    found += [one.pid] if "continuer.py" in " ".join(one.cmdline()) else []
            return found

        return wait_until(pids, what="the process that continues others")[0]

    def tasks_are_stopped(self) -> list[bool]:
        return [one.status() == psutil.STATUS_STOPPED for one in self.tasks]


@pytest.fixture
def worker() -> Iterator[Worker]:
    """A process that has started a busy one, and stops and continues it."""
    command = [sys.executable, "-c", WORKER, BURN.format(threads=1)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE) as process:
        assert process.stdout
        task = psutil.Process(int(process.stdout.readline()))
        worker = Worker(psutil.Process(process.pid), [task, *wait_until(task.children, what="what the task starts")])
        yield worker
        for one in worker.tasks:
            one.kill()
        process.kill()


def test_when_the_worker_is_killed_what_it_has_stopped_goes_on(worker: Worker) -> None:
    """What a task has started may outlive the worker's own processes, and must be able to end."""
    wait_until(lambda: worker.tasks_are_stopped() == [True, True], what="a pause")
    continuer = worker.continuer()
    worker.process.suspend()  # in a pause, or as if it were
    for one in worker.tasks:
        one.suspend()
    worker.process.kill()
    wait_until(lambda: worker.tasks_are_stopped() == [False, False], what="the end of the pause")
    wait_until(lambda: not alive([continuer]), what="its end")


def test_who_continues_others_is_replaced_when_it_is_killed(worker: Worker) -> None:
    continuer = worker.continuer()
    psutil.Process(continuer).kill()
    wait_until(lambda: worker.continuer() != continuer, what="another")


@pytest.mark.hogs
def test_no_process_is_left_of_the_duty_cycle_itself(burn: Burn) -> None:
    process = burn(threads=1)
    before = set(psutil.Process().children())
    duty = DutyCycle(lambda: [process.pid])
    duty.run_for(0.5)
    wait_until(lambda: set(psutil.Process().children()) - before, what="the process that continues others")
    duty.close()
    assert set(psutil.Process().children()) == before
