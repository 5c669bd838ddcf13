"""What hogs could leave behind: processes, shared memory, control groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.hogs.work import SHARED_PREFIX
from tests.integration.system import System
from tests.waiting import wait_until

CGROUPS = Path("/sys/fs/cgroup")


def there() -> set[Path]:
    """What is there now and would count as left behind."""
    groups = {path for path in CGROUPS.rglob("agentlink-*") if path.is_dir()}
    return groups | set(Path("/dev/shm").glob(f"{SHARED_PREFIX}*"))


def problems(system: System, before: set[Path]) -> Iterator[str]:
    """Stop all workers; what is there then and was not there before."""
    for worker in system.workers:
        if (status := worker.stop()) != 0:
            yield f"{worker.name} has ended with status {status}"
    try:
        wait_until(lambda: not system.processes_left(), what="the end of every process")
    except AssertionError:
        yield from (f"still running: {process}" for process in system.processes_left())
    yield from (f"left behind: {path}" for path in there() - before if not _in_use(path))


def _in_use(path: Path) -> bool:
    """Whether a control group has processes: another test's, since ours have ended."""
    try:
        return bool((path / "cgroup.procs").read_text())
    except OSError:
        return False
