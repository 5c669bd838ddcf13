"""What control groups allow: on made trees in the shapes that hosts and containers have, and the real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from agentlink.cgroups import Cgroups, Limit, memory_used_bytes, processes
from agentlink.settings import Settings
from tests.unit.made_proc import MadeProc

NO_LIMIT = 9223372036854771712
V1_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n"
)
V2_MOUNT = "31 23 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"
HYBRID_MOUNT = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"


@pytest.fixture
def made(tmp_path: Path) -> MadeProc:
    return MadeProc(tmp_path)


def groups(made: MadeProc) -> Cgroups:
    return Cgroups(10, proc=made.proc, mount=made.cgroups)


class TestVersion1:
    def test_the_least_of_all_groups_above_counts(self, made: MadeProc) -> None:
        """A group's parent may allow less than the group itself."""
        made.in_groups(10, "4:memory:/box/inner\n1:cpu,cpuacct:/box\n8:pids:/\n0::/\n", V1_MOUNTS)
        made.group("memory", memory__limit_in_bytes=NO_LIMIT)
        box = made.group("memory/box", memory__limit_in_bytes=512_000_000)
        inner = made.group("memory/box/inner", memory__limit_in_bytes=900_000_000)
        assert groups(made).memory_limit() == Limit(amount=512_000_000, group=box)
        assert [limit.group for limit in groups(made).memory_limits()] == [inner, box]

    def test_a_quota_is_cores(self, made: MadeProc) -> None:
        made.in_groups(10, "1:cpu,cpuacct:/box\n", V1_MOUNTS)
        made.group("cpu,cpuacct", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100_000)
        assert groups(made).cpu_cores() is None
        box = made.group("cpu,cpuacct/box", cpu__cfs_quota_us=150_000, cpu__cfs_period_us=100_000)
        assert groups(made).cpu_cores() == (1.5, box)

    def test_processes(self, made: MadeProc) -> None:
        made.in_groups(10, "8:pids:/box\n", V1_MOUNTS)
        box = made.group("pids/box", pids__max=200, pids__current=7)
        made.group("pids", pids__max="max")
        assert groups(made).processes_limits() == [Limit(amount=200, group=box)]
        assert processes(box) == 7

    def test_cached_files_are_not_used_memory(self, made: MadeProc) -> None:
        """Read once or often: of the group and of those below it."""
        stat = "cache 1\ninactive_file 3\nactive_file 4\ntotal_inactive_file 300\ntotal_active_file 200\n"
        box = made.group("memory/box", memory__usage_in_bytes=1000, memory__stat=stat)
        assert memory_used_bytes(box) == 500


class TestVersion2:
    def test_the_least_of_all_groups_above_counts(self, made: MadeProc) -> None:
        """The root of a machine has no such files."""
        made.in_groups(10, "0::/user.slice/work\n", V2_MOUNT)
        made.group("", cgroup__controllers="cpu memory pids")
        made.group("user.slice", memory__max=800_000_000, cpu__max="max 100000", pids__max=90)
        work = made.group("user.slice/work", memory__max="max", cpu__max="50000 100000", pids__max="max")
        assert groups(made).memory_limit() == Limit(amount=800_000_000, group=work.parent)
        assert groups(made).cpu_cores() == (0.5, work)
        assert groups(made).processes_limits() == [Limit(amount=90, group=work.parent)]

    def test_where_the_kernel_slows_all_down_is_a_limit(self, made: MadeProc) -> None:
        made.in_groups(10, "0::/work\n", V2_MOUNT)
        work = made.group("work", memory__max=800_000_000, memory__high=500_000_000)
        assert groups(made).memory_limit() == Limit(amount=500_000_000, group=work)

    def test_cached_files_are_not_used_memory(self, made: MadeProc) -> None:
        """Shared memory is not a cached file, though the kernel's own "file" counts it."""
        stat = "anon 100\nfile 700\nshmem 200\ninactive_file 300\nactive_file 200\n"
        work = made.group("work", memory__current=1000, memory__stat=stat)
        assert memory_used_bytes(work) == 500

    def test_a_container_sees_its_own_group_as_the_top(self, made: MadeProc) -> None:
        """With a namespace of control groups, as Docker makes one: both paths are "/"."""
        made.in_groups(10, "0::/\n", V2_MOUNT)
        top = made.group("", memory__max=512_000_000)
        assert groups(made).memory_limit() == Limit(amount=512_000_000, group=top)


class TestContainersWithoutANamespace:
    """The group's path is the host's, and only the container's part of the tree is mounted."""

    MOUNT = "35 31 0:32 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"

    def test_the_mount_shows_the_group_itself(self, made: MadeProc) -> None:
        made.in_groups(10, "4:memory:/docker/ab\n", self.MOUNT)
        top = made.group("memory", memory__limit_in_bytes=512_000_000)
        assert groups(made).memory_limit() == Limit(amount=512_000_000, group=top)

    def test_or_one_above_it(self, made: MadeProc) -> None:
        made.in_groups(10, "4:memory:/docker/ab/inner\n", self.MOUNT)
        inner = made.group("memory/inner", memory__limit_in_bytes=100_000_000)
        assert groups(made).memory_limit() == Limit(amount=100_000_000, group=inner)

    @pytest.mark.parametrize("path", ["/docker/abc", "/elsewhere", "/../other", "/docker/ab/gone"])
    def test_a_group_that_is_out_of_sight_is_judged_by_the_top(self, made: MadeProc, path: str) -> None:
        """`/docker/abc` is no part of `/docker/ab`; and a process may have been moved out of its container's groups."""
        made.in_groups(10, f"4:memory:{path}\n", self.MOUNT)
        made.group("memory/c", memory__limit_in_bytes=1)
        top = made.group("memory", memory__limit_in_bytes=512_000_000)
        assert groups(made).memory_limit() == Limit(amount=512_000_000, group=top)


class TestHybrid:
    def test_each_controller_is_looked_for_where_it_is(self, made: MadeProc) -> None:
        """systemd's mix: memory and CPU in version 1, the rest in version 2."""
        made.in_groups(10, "4:memory:/box\n0::/work\n", V1_MOUNTS + HYBRID_MOUNT)
        box = made.group("memory/box", memory__limit_in_bytes=512_000_000)
        work = made.group("unified/work", pids__max=50)
        assert groups(made).memory_limit() == Limit(amount=512_000_000, group=box)
        assert groups(made).processes_limits() == [Limit(amount=50, group=work)]


class TestNone:
    def test_no_files_no_limits(self, made: MadeProc) -> None:
        """As on a kernel without control groups, or a system that hides them."""
        nothing = groups(made)
        assert (nothing.memory_limit(), nothing.cpu_cores(), nothing.processes_limits()) == (None, None, [])
        assert memory_used_bytes(made.cgroups) is None

    @pytest.mark.parametrize("text", ["", "garbage", "-5", "0", "max"])
    def test_what_is_no_number_is_no_limit(self, made: MadeProc, text: str) -> None:
        made.in_groups(10, "0::/work\n", V2_MOUNT)
        made.group("work", memory__max=text, pids__max=text, cpu__max=f"{text} 100000")
        nothing = groups(made)
        assert (nothing.memory_limit(), nothing.cpu_cores(), nothing.processes_limits()) == (None, None, [])


def test_a_mount_with_a_space_in_its_path_is_found(made: MadeProc) -> None:
    """The kernel writes it as \\040."""
    top = made.group("a b", memory__max=1000)
    mount = str(top).replace(" ", "\\040")
    made.in_groups(10, "0::/\n", f"31 23 0:28 / {mount} rw - cgroup2 cgroup2 rw\n")
    assert groups(made).memory_limit() == Limit(amount=1000, group=top)


def test_limits_that_change_are_seen_at_the_next_look(made: MadeProc) -> None:
    made.in_groups(10, "0::/work\n", V2_MOUNT)
    made.group("work", memory__max=1000)
    own = groups(made)
    made.group("work", memory__max=2000)
    assert own.memory_limit() == Limit(amount=2000, group=made.cgroups / "work")


def test_on_the_real_machine_what_is_found_is_there() -> None:
    """Whatever this machine's groups are like."""
    own = Cgroups()
    for limit in own.memory_limits():
        assert limit.group.is_dir()
        assert limit.amount > 0
    cores = own.cpu_cores()
    assert cores is None or cores[0] > 0


@pytest.mark.skipif(
    not os.access("/sys/fs/cgroup/memory/memory.limit_in_bytes", os.W_OK), reason="needs root and version 1"
)
def test_a_process_in_a_real_group_of_512_mb_is_told_so() -> None:
    """Its own group is found through `/proc/PID`, not at a fixed place; and the default limit is a share of that."""
    group = Path(f"/sys/fs/cgroup/memory/agentlink-test-{os.getpid()}")
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text("512000000")
        code = (
            "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()))\n"
            "from agentlink.cgroups import Cgroups; from agentlink.settings import Settings\n"
            "limit = Cgroups().memory_limit(); print(limit.amount, limit.group, Settings().memory_bytes)"
        )
        environment = {name: value for name, value in os.environ.items() if name != "AGENTLINK_MEMORY"}
        told = subprocess.run(
            [sys.executable, "-c", code, str(group / "cgroup.procs")], env=environment, capture_output=True, check=True
        )
        amount, where, default = told.stdout.decode().split()
    finally:
        group.rmdir()
    assert (int(amount), where) == (512_000_000 // 4096 * 4096, str(group))
    assert int(default) == int(int(amount) * 0.8)


@pytest.mark.parametrize(
    ("limit", "memory", "free"),
    [
        (None, min(8_000_000_000, int(psutil.virtual_memory().total * 0.8)), None),
        (Limit(amount=512_000_000, group=Path("/g")), 409_600_000, 51_200_000),
    ],
)
def test_the_default_limit_is_a_share_of_what_the_container_has(
    monkeypatch: pytest.MonkeyPatch, limit: Limit | None, memory: int, free: int | None
) -> None:
    """Else a container of 512 MB would be filled until the kernel shoots."""
    monkeypatch.setattr(Cgroups, "memory_limit", lambda _self: limit)
    for name in ("AGENTLINK_MEMORY", "AGENTLINK_MEMORY_FREE"):
        monkeypatch.delenv(name, raising=False)
    settings = Settings()
    assert settings.memory_bytes == memory
    if free is not None:
        assert settings.memory_free_bytes == free
