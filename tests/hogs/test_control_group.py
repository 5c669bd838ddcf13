"""In a container the limit is the container's: a worker in a control group of 512 MB knows of no more."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hogs import work
from tests.hogs.work import MB
from tests.integration.system import System
from tests.integration.test_guard import inspect

pytestmark = [pytest.mark.hogs, pytest.mark.timeout(120)]

GROUP_BYTES = 512_000_000
#: Starts a program in the control group whose folder it is given first.
ENTER = ("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"')


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group (version 1) for memory, below that of this process."""
    own = _own_group()
    if own is None:
        pytest.skip("needs control groups of version 1 for memory")
    path = own / f"agentlink-test-{uuid.uuid4().hex[:8]}"
    try:
        path.mkdir()
        (path / "memory.limit_in_bytes").write_text(str(GROUP_BYTES))
    except OSError as error:
        with contextlib.suppress(OSError):
            path.rmdir()
        pytest.skip(f"needs the right to make a control group: {error}")
    yield path
    path.rmdir()


def _own_group() -> Path | None:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers == "memory":
            path = Path("/sys/fs/cgroup/memory", name.lstrip("/"))
            return path if path.is_dir() else None
    return None


def test_a_worker_in_a_control_group_takes_its_limit_for_the_machines(group: Path, system: System) -> None:
    """And so the kernel, which would end what goes beyond it, has nothing to do."""
    worker = system.start_worker(memory="8GB", imports="tests.hogs.work", before=(*ENTER, str(group)))
    assert str(worker.pid) in (group / "cgroup.procs").read_text().split()
    memory = inspect(system, "guard")["resources"]["memory"]
    assert (memory["limit"], memory["where"]) == (GROUP_BYTES, str(group))

    path = str(system.folder / "ledger")
    held = [work.holds_100_mb.delay(path, number, 0.2) for number in range(6)]
    greedy = work.shares_memory.delay(path, 7, 2 * GROUP_BYTES)
    assert [result.get(timeout=60) for result in held] == 6 * [100 * MB]
    greedy.get(timeout=60, propagate=False)
    assert greedy.state == "FAILURE"
    assert "oom_kill 0" in (group / "memory.oom_control").read_text()
    assert worker.process.poll() is None
    assert worker.stop() == 0
