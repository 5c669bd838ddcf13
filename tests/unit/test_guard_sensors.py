"""One look at everything: on made trees of `/proc` and control groups, and on the real machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from resource_guard.errors import SensorError
from resource_guard.limits import Limits
from resource_guard.observation import Observation, ProcessUse, Reading, Resource
from resource_guard.psutil_sensor import PsutilMemorySensor
from resource_guard.sensors import Sensors, make_sensors
from tests.unit.made_proc import PAGE_BYTES, MadeProc
from tests.waiting import wait_until

MACHINE_CORES = len(os.sched_getaffinity(0))
LIMITS = Limits(memory_bytes=10_000 * PAGE_BYTES, memory_free_bytes=1000 * PAGE_BYTES, cpu_fraction=0.6, processes=100)
V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/{0} rw,relatime - cgroup cgroup rw,{0}\n"
V2_MOUNT = "31 23 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"

Look = Callable[..., Observation]


@pytest.fixture
def made(tmp_path: Path) -> MadeProc:
    made = MadeProc(tmp_path)
    made.process(10)
    return made


@pytest.fixture
def look(made: MadeProc, tmp_path: Path) -> Iterator[Look]:
    """A look of sensors whose worker is process 10, and that look up control groups anew each time."""
    limits = [LIMITS]
    sensors = Sensors(lambda: limits[0], [10], 10, [], lambda: None, tmp_path, proc=made.proc, cgroups=made.cgroups)
    at = iter(range(1000))

    def look(**changes: Any) -> Observation:
        limits[0] = replace(LIMITS, **changes)
        return sensors.observe(next(at))

    yield look
    sensors.close()


class TestMemory:
    def test_of_the_tree_against_the_setting(self, made: MadeProc, look: Look) -> None:
        made.process(10, own=1000, children=[20])
        made.process(20, own=500)
        assert look().readings[Resource.MEMORY] == Reading(value=1500 * PAGE_BYTES, limit=10_000 * PAGE_BYTES)

    def test_against_what_the_machine_has_if_that_is_less(self, made: MadeProc, look: Look) -> None:
        made.memory(total=5000, available=100)
        assert look().readings[Resource.MEMORY].limit == 5000 * PAGE_BYTES

    @pytest.mark.parametrize("version", [1, 2])
    def test_of_a_control_group_against_its_limit_if_that_is_less(
        self, made: MadeProc, look: Look, version: int
    ) -> None:
        """Then all that is in the group counts, but not the files it has cached."""
        stat = f"anon 1\ninactive_file {300 * PAGE_BYTES}\nactive_file {100 * PAGE_BYTES}"
        if version == 1:
            made.in_groups(10, "4:memory:/box\n", V1_MOUNT.format("memory"))
            box = made.group(
                "memory/box",
                memory__limit_in_bytes=4000 * PAGE_BYTES,
                memory__usage_in_bytes=3000 * PAGE_BYTES,
                memory__stat=stat.replace("inactive", "total_inactive").replace("\nactive", "\ntotal_active"),
            )
        else:
            made.in_groups(10, "0::/box\n", V2_MOUNT)
            box = made.group("box", memory__max=4000 * PAGE_BYTES, memory__current=3000 * PAGE_BYTES, memory__stat=stat)
        assert look().readings[Resource.MEMORY] == Reading(
            value=2600 * PAGE_BYTES, limit=4000 * PAGE_BYTES, where=str(box)
        )

    def test_of_the_tree_while_the_setting_is_less_than_the_group_has(self, made: MadeProc, look: Look) -> None:
        """And when the group's limit falls below it, from the next second on the group's."""
        made.in_groups(10, "0::/box\n", V2_MOUNT)
        made.group("box", memory__max=50_000 * PAGE_BYTES, memory__current=40_000 * PAGE_BYTES)
        assert look().readings[Resource.MEMORY] == Reading(value=0, limit=10_000 * PAGE_BYTES)
        made.group("box", memory__max=9000 * PAGE_BYTES)
        assert look().readings[Resource.MEMORY].limit == 9000 * PAGE_BYTES

    def test_of_the_tree_if_the_group_does_not_tell_its_own(self, made: MadeProc, look: Look) -> None:
        """The limit holds all the same."""
        made.in_groups(10, "0::/box\n", V2_MOUNT)
        made.group("box", memory__max=4000 * PAGE_BYTES)
        made.process(10, own=70)
        assert look().readings[Resource.MEMORY] == Reading(value=70 * PAGE_BYTES, limit=4000 * PAGE_BYTES)


class TestMemoryFree:
    def test_is_what_the_kernel_calls_available(self, made: MadeProc, look: Look) -> None:
        """MemAvailable counts caches that can be dropped; MemFree would pause a healthy machine."""
        made.memory(total=50_000, available=2048)
        assert look().readings[Resource.MEMORY_FREE] == Reading(
            value=2048 * PAGE_BYTES, limit=1000 * PAGE_BYTES, floor=True
        )

    def test_is_what_a_group_has_left_if_that_is_nearer_to_its_floor(self, made: MadeProc, look: Look) -> None:
        """Though the limit of memory is the setting: others in the container may have taken the rest."""
        made.in_groups(10, "0::/box/inner\n", V2_MOUNT)
        box = made.group("box", memory__max=12_000 * PAGE_BYTES, memory__current=11_500 * PAGE_BYTES)
        made.group("box/inner", memory__max=20_000 * PAGE_BYTES, memory__current=0)
        assert look().readings[Resource.MEMORY_FREE] == Reading(
            value=500 * PAGE_BYTES, limit=600 * PAGE_BYTES, floor=True, where=str(box)
        )

    def test_asks_a_small_container_for_a_small_part_only(self, made: MadeProc, look: Look) -> None:
        """`memory_free` is for machines: a container of 512 MB would never have 500 MB left."""
        made.in_groups(10, "0::/box\n", V2_MOUNT)
        made.group("box", memory__max=1000 * PAGE_BYTES, memory__current=100 * PAGE_BYTES)
        assert look().readings[Resource.MEMORY_FREE].fraction < 0.1


class TestCpu:
    def test_is_a_share_of_the_machine(self, made: MadeProc, look: Look) -> None:
        """One core busy for a second, and a child that has ended after half a second more."""
        made.process(10, cpu_s=100.0)
        assert look().readings[Resource.CPU] == Reading(value=0, limit=0.6)
        made.process(10, cpu_s=101.0, ended_cpu_s=0.5)
        reading = look().readings[Resource.CPU]
        assert reading.value == pytest.approx(min(1.5, MACHINE_CORES) / MACHINE_CORES)

    @pytest.mark.parametrize("version", [1, 2])
    def test_is_a_share_of_a_groups_quota_if_that_is_less(self, made: MadeProc, look: Look, version: int) -> None:
        if version == 1:
            made.in_groups(10, "4:cpu:/box\n", V1_MOUNT.format("cpu"))
            box = made.group("cpu/box", cpu__cfs_quota_us=50_000, cpu__cfs_period_us=100_000)
        else:
            made.in_groups(10, "0::/box\n", V2_MOUNT)
            box = made.group("box", cpu__max="50000 100000")
        look()
        made.process(10, cpu_s=0.25)
        assert look().readings[Resource.CPU] == Reading(value=0.5, limit=0.6, where=str(box))

    def test_a_quota_above_what_there_is_changes_nothing(self, made: MadeProc, look: Look) -> None:
        made.in_groups(10, "0::/box\n", V2_MOUNT)
        made.group("box", cpu__max="100000000 100000")
        assert look().readings[Resource.CPU].where == ""


class TestProcesses:
    def test_are_counted(self, made: MadeProc, look: Look) -> None:
        made.process(10, children=[20, 30])
        made.process(20)
        made.process(30)
        assert look().readings[Resource.PROCESSES] == Reading(value=3, limit=100)

    def test_with_threads_where_a_group_is_nearer_to_its_limit(self, made: MadeProc, look: Look) -> None:
        """The kernel counts both alike there."""
        made.in_groups(10, "0::/box\n", V2_MOUNT)
        box = made.group("box", pids__max=200, pids__current=50)
        assert look().readings[Resource.PROCESSES] == Reading(value=50, limit=200, where=str(box), unit="threads")
        made.group("box", pids__current=1)
        assert look().readings[Resource.PROCESSES].where == ""


class TestChildren:
    def test_are_the_workers_with_all_below_them(self, made: MadeProc, look: Look) -> None:
        """What a task has started counts as the task's, also what has ended."""
        made.process(10, own=1, cpu_s=1, children=[20, 30])
        made.process(20, own=10, files=5000, cpu_s=2, children=[40, 50])
        made.process(30, own=100)
        made.process(40, own=1000, cpu_s=3, ended_cpu_s=4)
        made.process(50, shmem=2000)
        assert look().children == {
            20: ProcessUse(pid=20, rss_bytes=3010 * PAGE_BYTES, cpu_s=9, pids=(20, 50, 40)),
            30: ProcessUse(pid=30, rss_bytes=100 * PAGE_BYTES, cpu_s=0, pids=(30,)),
        }

    def test_that_cannot_be_read_are_left_out(self, made: MadeProc, look: Look) -> None:
        made.process(10, children=[20])
        assert look().children == {}


class TestStalls:
    def test_are_told_where_the_kernel_does(self, made: MadeProc, look: Look) -> None:
        (made.proc / "pressure").mkdir()
        (made.proc / "pressure/memory").write_text(
            "some avg10=12.50 avg60=1.00 avg300=0.10 total=1\nfull avg10=9.00 avg60=1 avg300=0 total=1\n"
        )
        (made.proc / "pressure/io").write_text("")
        assert look().stalled == {"memory": 12.5}

    def test_are_empty_elsewhere(self, look: Look) -> None:
        assert look().stalled == {}


class TestWithout:
    def test_the_machines_figures_the_tree_is_enough(self, made: MadeProc, look: Look) -> None:
        (made.proc / "meminfo").unlink()
        assert Resource.MEMORY in look().readings
        assert Resource.MEMORY_FREE not in look().readings

    def test_the_tree_the_machines_figures_are_enough(self, made: MadeProc, look: Look) -> None:
        """What can't be read is absent, which is not the same as zero; the next look may find it again."""
        made.gone(10)
        seen = look()
        assert Resource.MEMORY_FREE in seen.readings
        assert not {Resource.MEMORY, Resource.CPU, Resource.PROCESSES} & set(seen.readings)
        made.process(10, own=5)
        assert look().readings[Resource.MEMORY].value == 5 * PAGE_BYTES

    def test_either_there_is_nothing_to_decide_on(self, made: MadeProc, look: Look) -> None:
        made.gone(10)
        (made.proc / "meminfo").write_text("MemTotal: 1 kB\n")
        with pytest.raises(SensorError, match=r"memory can't be read: neither .*/proc/meminfo nor a process"):
            look()


# -- On the real machine


def real(limits: Limits, home: Path) -> Any:
    return make_sensors(lambda: limits, [os.getpid()], os.getpid(), [home], lambda: (1, 2), home)


def test_on_the_real_machine_all_is_read(tmp_path: Path) -> None:
    """With a child that takes 60 MB, and without anything of ours in the way."""
    sensors = real(LIMITS, tmp_path)
    before = sensors.observe(0.0)
    code = "x = bytearray(b'x') * 60_000_000; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdin
        child.stdout.readline()
        during = sensors.observe(1.0)
        wait_until(lambda: set(sensors.observe(2.0).readings) == set(Resource), what="the slow readings")
        child.stdin.write(b"\n")
    sensors.close()
    grown = during.readings[Resource.MEMORY].value - before.readings[Resource.MEMORY].value
    assert 55_000_000 < grown < 100_000_000
    assert 60_000_000 < during.children[child.pid].rss_bytes < 80_000_000
    assert during.children[child.pid].cpu_s > 0
    assert 0 < during.readings[Resource.MEMORY_FREE].value < psutil.virtual_memory().total


def test_a_busy_child_shows_in_the_cpu_and_stays_in_it_when_it_has_ended(tmp_path: Path) -> None:
    """Ten looks at a child that burns for a second, and one when it is gone."""
    sensors = real(LIMITS, tmp_path)
    sensors.observe(0.0)
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"], check=True)
    reading = sensors.observe(1.0).readings[Resource.CPU]
    sensors.close()
    assert 0.45 < reading.value * sensors.cores < 1.0


class TestPsutil:
    def test_finds_a_childs_memory_too(self) -> None:
        """Where there is no `/proc`."""
        sensor = PsutilMemorySensor(lambda: LIMITS, [os.getpid()])
        before = sensor.observe(0.0).readings
        code = "x = bytearray(b'x') * 60_000_000; print(flush=True); input()"
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout
            assert child.stdin
            child.stdout.readline()
            during = sensor.observe(1.0).readings
            child.stdin.write(b"\n")
        assert 55_000_000 < during[Resource.MEMORY].value - before[Resource.MEMORY].value < 200_000_000
        assert during[Resource.PROCESSES].value - before[Resource.PROCESSES].value == 1
        assert before[Resource.MEMORY_FREE].value > 0

    def test_says_so_when_there_is_nothing_to_read(self) -> None:
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        with pytest.raises(SensorError):
            PsutilMemorySensor(lambda: LIMITS, [gone.pid]).observe(0.0)
