"""A quota of the kernel's for the pool's processes: a control group of their own below the worker's.

With version 1 that takes a writable `cpu` hierarchy, which is root's as a rule; with version 2 a group that has been
delegated with its `cpu` controller, and for which the kernel lets a group with processes have groups below it.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from resource_guard.held_tree import HeldTree

PREFIX = "agentlink-"
PERIOD_US = 100_000
# The kernel takes no less.
_LEAST_QUOTA_US = 1_000
# With each new quota the kernel begins a new period, and gives all of it at once: ten a second were seen to double it.
_WRITE_EVERY_S = 1.0
# One that differs by less is not worth that.
_CHANGE_FRACTION = 0.02
# A group can't be removed while its last process is being torn down.
_EMPTY_WITHIN_S = 1.0


class CpuQuota:
    """The group `folder`, which `open` makes.

    Its processes are never stopped: a task takes longer, and that time counts.
    """

    name = "cgroup quota"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._quota_us: int | None = None
        self._leaving: set[int] = set()
        self._moving: dict[int, Future[None]] = {}
        self._mover = ThreadPoolExecutor(1, "cpu-quota")
        self._written_at = -math.inf

    @classmethod
    def open(cls, proc: Path = Path("/proc")) -> CpuQuota | None:
        """A group for this worker, with those of dead workers cleaned up; None where none can be made."""
        for parent in _own_groups(proc):
            remove_leftovers(parent)
            quota = cls(parent / f"{PREFIX}{os.getpid()}")
            try:
                _enable(parent)
                quota.folder.mkdir(exist_ok=True)
                quota._write(None)
            except OSError:
                with contextlib.suppress(OSError):
                    quota.folder.rmdir()
            else:
                return quota
        return None

    def hold(self, at: float, cores: float, children: Collection[int]) -> None:
        """Set the quota, none if `cores` is infinite, and move in who is not in; what they start later is in by itself.

        Raises:
            OSError: the group is gone, or no longer ours to change.
        """
        self._move_in(children)
        self._leaving &= set(children)
        if not self._leaving and at - self._written_at >= _WRITE_EVERY_S:
            self._written_at = at
            self._change(None if math.isinf(cores) else _quota_us(cores))

    def let_go(self, child: int, cores: float) -> None:
        """A child is to end; where less than half of `cores` is left, the quota is that until it has.

        Where the quota is used up, not even a killed process gets to give back its memory. To move it out takes some
        milliseconds for each process of its tree, which is too long, and without a quota all others would run freely.
        """
        self._leaving.add(child)
        if self._quota_us is not None and self._quota_us < _quota_us(cores) / 2:
            with contextlib.suppress(OSError):
                self._write(_quota_us(cores))

    def close(self) -> None:
        """Give the processes back to the group they came from, and remove this one."""
        self._mover.shutdown()
        _remove(self.folder)

    def _move_in(self, children: Collection[int]) -> None:
        """In another thread: the kernel stops all forks meanwhile, and 0.2 s were seen on a busy machine."""
        for child, moving in list(self._moving.items()):
            if moving.done():
                del self._moving[child]
                moving.result()
        inside = _pids(self.folder)
        for child in children:
            if child not in inside and child not in self._moving:
                self._moving[child] = self._mover.submit(_move_tree, child, self.folder)

    def _change(self, quota_us: int | None) -> None:
        before_us = self._quota_us
        if quota_us is None or before_us is None:
            is_other = quota_us != before_us
        else:
            is_other = abs(quota_us - before_us) > _CHANGE_FRACTION * before_us
        if is_other:
            self._write(quota_us)

    def _write(self, quota_us: int | None) -> None:
        if (self.folder / "cpu.cfs_quota_us").exists():
            (self.folder / "cpu.cfs_quota_us").write_text(str(-1 if quota_us is None else quota_us))
        else:
            # Not made by writing: where the controller is not delegated, there is no such file.
            with (self.folder / "cpu.max").open("r+") as file:
                file.write(f"{'max' if quota_us is None else quota_us} {PERIOD_US}\n")
        self._quota_us = quota_us


def _quota_us(cores: float) -> int:
    return max(_LEAST_QUOTA_US, round(cores * PERIOD_US))


def remove_leftovers(parent: Path) -> None:
    """Remove the groups of workers that were killed; what their tasks left behind runs freely again."""
    for folder in parent.glob(f"{PREFIX}*"):
        suffix = folder.name.removeprefix(PREFIX)
        if suffix.isdecimal() and not Path(f"/proc/{suffix}").exists():
            _remove(folder)


def _own_groups(proc: Path) -> Iterator[Path]:
    """The group of this process that may have a cpu quota: of version 1, then of version 2."""
    try:
        groups = [
            line.split(":", 2) for line in (proc / "self/cgroup").read_text(errors="surrogateescape").splitlines()
        ]
        mounts = [line.split() for line in (proc / "self/mountinfo").read_text(errors="surrogateescape").splitlines()]
    except OSError:
        return
    for version_1 in (True, False):
        for _, controllers, group in groups:
            if not ("cpu" in controllers.split(",") if version_1 else not controllers):
                continue
            for mount in mounts:
                # … root, mount point, options, optional fields, "-", type, source, options of the file system
                kind, options = mount[mount.index("-") + 1], mount[-1].split(",")
                if (kind == "cgroup" and "cpu" in options) if version_1 else kind == "cgroup2":
                    inner = os.path.relpath(group, mount[3])
                    if not inner.startswith(".."):
                        yield Path(mount[4]) / inner


def _enable(parent: Path) -> None:
    """In version 2, let groups below have the controller, if there is one here; the kernel refuses that as a rule."""
    subtree = parent / "cgroup.subtree_control"
    if subtree.exists() and "cpu" not in subtree.read_text().split():
        subtree.write_text("+cpu")


def _pids(folder: Path) -> set[int]:
    return {int(pid) for pid in (folder / "cgroup.procs").read_text().split()}


def _move_tree(child: int, folder: Path) -> None:
    tree = HeldTree(child, parent_pid=os.getpid())
    try:
        (folder / "cgroup.procs").write_text(str(child))
        while tree.look():  # what it had started before, and what those start meanwhile
            for pid in tree.pids:
                _move(pid, folder)
    except ProcessLookupError:
        pass  # it has ended
    finally:
        tree.close()


def _move(pid: int, folder: Path) -> None:
    with contextlib.suppress(OSError):  # it has ended, or belongs to another user
        (folder / "cgroup.procs").write_text(str(pid))


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + _EMPTY_WITHIN_S
    while True:
        with contextlib.suppress(OSError):
            for pid in _pids(folder):
                _move(pid, folder.parent)
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)
        else:
            return
