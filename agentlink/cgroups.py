"""What Linux's control groups, of either version, allow this process; in a container that is less than the machine has.

A process is in a group of each hierarchy, and under the limits of every group above that one. `/proc/self/cgroup` says
which group, `/proc/self/mountinfo` where its files are: neither is at a fixed place, and a container often sees only
the part of the tree that is its own. Limits are read anew by each call, since they change while a process runs. What
can't be read sets no limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
# Version 1 writes "no limit" as the largest number of whole pages.
_NO_LIMIT = 2**62


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """What a group allows all in it together."""

    amount: int
    #: The group's folder.
    group: Path


class Cgroups:
    """The groups of process `pid`; the roots are arguments so that tests can make trees of their own."""

    def __init__(self, pid: int | str = "self", *, proc: Path = Path("/proc"), mount: Path = MOUNT) -> None:
        own = _own_paths(_text(proc / f"{pid}/cgroup"))
        #: The folders of each controller's groups, the process's own first; "" are those of version 2.
        self._folders: dict[str, list[Path]] = {}
        for controllers, root, folder in _mounts(_text(proc / f"{pid}/mountinfo"), mount):
            for controller in controllers:
                if controller in own:
                    self._folders.setdefault(controller, list(_upwards(own[controller], root, folder)))

    def memory_limits(self) -> list[Limit]:
        """Bytes, in every group that sets a limit. At version 2's `high` the kernel slows all down to a crawl."""
        return list(self._limits("memory", v1=["memory.limit_in_bytes"], v2=["memory.max", "memory.high"]))

    def memory_limit(self) -> Limit | None:
        """The least of them; None if memory is unlimited."""
        return min(self.memory_limits(), key=lambda limit: limit.amount, default=None)

    def processes_limits(self) -> list[Limit]:
        """Processes and threads together, in every group that sets a limit."""
        return list(self._limits("pids", v1=["pids.max"], v2=["pids.max"]))

    def cpu_cores(self) -> tuple[float, Path] | None:
        """The CPU time allowed in a second, and the group that sets it; None if it is unlimited."""
        quotas = [
            *((_v1_cores(folder), folder) for folder in self._folders.get("cpu", [])),
            *((_v2_cores(folder), folder) for folder in self._folders.get("", [])),
        ]
        return min(((cores, folder) for cores, folder in quotas if cores), default=None)

    def _limits(self, controller: str, *, v1: Sequence[str], v2: Sequence[str]) -> Iterator[Limit]:
        for folders, names in ((self._folders.get(controller, []), v1), (self._folders.get("", []), v2)):
            for folder, name in product(folders, names):
                amount = _number(folder / name)
                if amount is not None and 0 < amount < _NO_LIMIT:
                    yield Limit(amount=amount, group=folder)


def memory_used_bytes(group: Path) -> int | None:
    """What the processes of a group use, without what the kernel has cached of files for them; None if unknown.

    All cached pages, not only the inactive ones: those of a file that is read twice are active, and can be dropped all
    the same.
    """
    current = _number(group / "memory.usage_in_bytes", group / "memory.current")
    if current is None:
        return None
    stat = _pairs(_text(group / "memory.stat"))
    # Version 1 has the group's own pages without "total_", and those of the groups below it with.
    prefix = "total_" if "total_inactive_file" in stat else ""
    return max(0, current - stat.get(f"{prefix}inactive_file", 0) - stat.get(f"{prefix}active_file", 0))


def processes(group: Path) -> int | None:
    """How many processes and threads there are in a group; None if unknown."""
    return _number(group / "pids.current")


def _own_paths(text: str) -> dict[str, str]:
    """The path of the process's group by controller, of lines like `4:memory:/a/b`; version 2's is `0::/a/b`."""
    lines = (line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2)
    return {controller: path for _, controllers, path in lines for controller in controllers.split(",")}


def _mounts(text: str, mount: Path) -> Iterator[tuple[Iterable[str], str, Path]]:
    """Of each mounted hierarchy its controllers, which group is at its top, and the folder that it is mounted at."""
    for line in text.splitlines():
        mounted, _, source = line.partition(" - ")
        fields, kind = mounted.split(), source.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        root, folder = _unescaped(fields[3]), Path(_unescaped(fields[4]))
        if folder.is_relative_to(MOUNT):
            folder = mount / folder.relative_to(MOUNT)
        yield [""] if kind[0] == "cgroup2" else kind[2].split(","), root, folder


def _upwards(path: str, root: str, folder: Path) -> Iterator[Path]:
    """The folders of the group `path` and of all above it that can be seen, where `folder` shows the group `root`."""
    inside = path.removeprefix(root.rstrip("/")) if f"{path}/".startswith(f"{root.rstrip('/')}/") else ""
    own = folder / inside.strip("/")
    if ".." in own.parts:  # moved out of what its container sees
        own = folder
    while own != folder:
        yield own
        own = own.parent
    yield folder


def _v1_cores(group: Path) -> float | None:
    quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else None


def _v2_cores(group: Path) -> float | None:
    quota, _, period = _text(group / "cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(quota) and int(period) else None


def _pairs(text: str) -> Mapping[str, int]:
    fields = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in fields if len(pair) == 2 and pair[1].isdigit()}


def _number(*files: Path) -> int | None:
    """What the first of `files` that holds a number says; "max" is none."""
    for file in files:
        text = _text(file).strip()
        if text.lstrip("-").isdigit():
            return int(text)
    return None


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="surrogateescape")
    except OSError:
        return ""


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)
