"""Each hog alone, without AgentLink around it: it takes what it says, and the sampler sees that from outside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hogs.watch import Watch, watched
from tests.hogs.work import MB
from tests.integration.system import REPOSITORY
from tests.waiting import wait_until

pytestmark = pytest.mark.hogs

TAKEN_BYTES = 320 * MB
#: `stress-ng` lets go as soon as it has it all: what it had within a sample's time before.
SEEN_BYTES = 220 * MB
#: The interpreter with Celery in it, and programs beside it.
BESIDES_BYTES = 160 * MB
#: Calls a task as a function when told to, says when that is at its peak, goes on and ends when told to.
ALONE = """
import sys
from tests.hogs import work
def wait_at_peak():
    print("at its peak", flush=True)
    sys.stdin.readline()
work.at_peak = wait_at_peak
print("ready", flush=True)
sys.stdin.readline()
name, *arguments = sys.argv[1:]
print(getattr(work, name).run(*[int(word) if word.isdigit() else word for word in arguments]), flush=True)
sys.stdin.readline()
"""


@contextmanager
def alone(name: str, *arguments: object, folder: Path) -> Iterator[tuple[subprocess.Popen[str], Watch]]:
    """A process that will call a task, and what was seen of it once it has ended."""
    command = [sys.executable, "-c", ALONE, name, str(folder / "ledger"), "1", *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY, text=True, bufsize=1
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with watched([process.pid], folder / "samples.csv") as watch:
            yield process, watch


def answer(process: subprocess.Popen[str]) -> str:
    """Let it go on; what it says next."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(file=process.stdin)
    return process.stdout.readline().strip()


def see_its_peak(process: subprocess.Popen[str], folder: Path) -> None:
    """Let it call its task, and wait for a sample that began when that had all it will take."""
    assert answer(process) == "at its peak"
    written = _samples(folder)
    wait_until(lambda: _samples(folder) > written + 1, what="a sample that began after that")


def _samples(folder: Path) -> int:
    return (folder / "samples.csv").read_text().count("\n")


@pytest.mark.parametrize(
    "name",
    [
        "allocates",
        "allocates_with_numpy",
        "has_a_program_allocate",
        "has_many_programs_allocate",
        "leaks",
        "says_nothing",
        "shares_memory",
        "shares_memory_by_name",
    ],
)
def test_a_hog_takes_what_it_says_and_is_seen(name: str, tmp_path: Path) -> None:
    with alone(name, TAKEN_BYTES, folder=tmp_path) as (process, watch):
        see_its_peak(process, tmp_path)
        assert answer(process) == str(TAKEN_BYTES)
    assert TAKEN_BYTES <= watch.highest.own_bytes <= TAKEN_BYTES + BESIDES_BYTES
    assert list(Path("/dev/shm").glob("agentlink-hog-*")) == []


@pytest.mark.skipif(not shutil.which("stress-ng"), reason="needs Debian's stress-ng")
def test_stress_ng_takes_what_it_says_and_is_seen(tmp_path: Path) -> None:
    with alone("stresses", TAKEN_BYTES, folder=tmp_path) as (process, watch):
        assert answer(process) == "0"
    assert SEEN_BYTES <= watch.highest.own_bytes <= TAKEN_BYTES + BESIDES_BYTES


def test_a_fork_bomb_is_seen_with_every_page_counted_once(tmp_path: Path) -> None:
    """Two hundred processes share what their parent had: the sum of their RSS is many times what they take."""
    with alone("forks", 200, folder=tmp_path) as (process, watch):
        see_its_peak(process, tmp_path)
        assert answer(process) == "200"
    most = max(watch.samples, key=lambda sample: sample.processes)
    assert most.processes > 200
    assert most.rss_bytes > 3 * (most.own_bytes + most.file_bytes)


def test_memory_that_is_a_file_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * TAKEN_BYTES)
    with alone("reads_a_file", path, folder=tmp_path) as (process, watch):
        see_its_peak(process, tmp_path)
        first, second = answer(process).strip("[]").split(", ")
    assert first == second
    assert watch.highest_with_files.file_bytes >= TAKEN_BYTES
    assert watch.highest.own_bytes < BESIDES_BYTES


def test_a_disk_is_filled_and_given_back(tmp_path: Path, small_disk: Path | None) -> None:
    if small_disk is None:
        pytest.skip("needs the right to mount a disk")
    with alone("fills_a_disk", small_disk, folder=tmp_path) as (process, _):
        assert answer(process) == "No space left on device"
    assert list(small_disk.iterdir()) == []


def test_no_time_is_lost_with_the_processes_that_have_used_it(tmp_path: Path) -> None:
    """Neither of a process that is there nor of those that came and went between two samples."""
    program = f"{sys.executable} -I -S -c 'sum(range(10**6))'"
    script = "read line; for number in 1 2 3 4 5 6 7 8 9 10; do " + program + "; done; read line"
    with subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, text=True, bufsize=1) as shell:
        assert shell.stdin is not None
        with watched([shell.pid], tmp_path / "samples.csv") as watch:
            print("\n", file=shell.stdin)
            _, _, used = os.wait4(shell.pid, 0)
        shell.returncode = 0
    assert used.ru_utime + used.ru_stime > 0.1
    assert watch.samples[-1].cpu_s == pytest.approx(used.ru_utime + used.ru_stime, abs=0.1)


def test_a_process_that_leaves_its_parents_is_still_seen(tmp_path: Path) -> None:
    """By what it has in its environment."""
    mark = f"HOG_MARK={tmp_path.name}-{time.monotonic_ns()}"
    # Its parent is gone before the sampler begins.
    subprocess.run(["setsid", "--fork", "env", mark, "sleep", "3"], check=True)
    with (
        subprocess.Popen(["cat"], stdin=subprocess.PIPE) as root,
        watched([root.pid], tmp_path / "samples.csv", environment=mark) as watch,
    ):
        pass
    assert [watch.samples[0].processes, "sleep" in watch.samples[0].largest] == [2, True]
