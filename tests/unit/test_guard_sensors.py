"""What the guard reads, on made `/proc` trees, and once on the real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from resource_guard import MemorySensor, SensorError, memory_sensor, sensors
from resource_guard.sensors import PsutilMemorySensor

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class MadeProc:
    """A `/proc` with just the files that the sensor reads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.available(1_000_000)

    def available(self, kilobytes: int) -> None:
        (self.root / "meminfo").write_text(f"MemTotal: 9999999 kB\nMemAvailable:   {kilobytes} kB\nSwapFree: 0 kB\n")

    def process(self, pid: int, *, pages: int, children: dict[int, list[int]] | None = None) -> None:
        """`children` by the thread that started them."""
        threads: dict[int, list[int]] = {pid: [], **(children or {})}
        for thread, started in threads.items():
            task = self.root / f"{pid}/task/{thread}"
            task.mkdir(parents=True, exist_ok=True)
            (task / "children").write_text("".join(f"{child} " for child in started))
        (self.root / f"{pid}/statm").write_text(f"99999 {pages} 1 1 0 1 0\n")

    def share(self, pid: int, *, pss_kilobytes: int) -> None:
        (self.root / f"{pid}/smaps_rollup").write_text(
            f"00-ff ---p 0 0 0 [rollup]\nRss: 99999 kB\nPss: {pss_kilobytes} kB\n"
        )


@pytest.fixture
def proc(tmp_path: Path) -> MadeProc:
    return MadeProc(tmp_path)


def tree_pages(sensor: MemorySensor, at: float = 0.0) -> float:
    return sensor.observe(at).tree_bytes / PAGE_BYTES


def test_it_counts_the_root_and_all_its_descendants_and_nobody_else(proc: MadeProc) -> None:
    """Children of children, and children that a thread other than the main one has started."""
    proc.process(10, pages=1, children={10: [20], 11: [30]})
    proc.process(20, pages=10, children={20: [40]})
    proc.process(30, pages=100)
    proc.process(40, pages=1000)
    proc.process(99, pages=5000)
    assert tree_pages(MemorySensor(10, proc.root)) == 1111


def test_it_reports_what_the_kernel_calls_available(proc: MadeProc) -> None:
    """MemAvailable counts caches that can be dropped; MemFree would pause a healthy machine."""
    proc.process(10, pages=1)
    proc.available(2048)
    seen = MemorySensor(10, proc.root).observe(5.0)
    assert (seen.at, seen.available_bytes) == (5.0, 2048 * 1024)


def test_a_process_that_has_gone_is_left_out(proc: MadeProc) -> None:
    """Between the list and the reading a child may end."""
    proc.process(10, pages=1, children={10: [20, 21]})
    proc.process(21, pages=10)
    assert tree_pages(MemorySensor(10, proc.root)) == 11


@pytest.mark.parametrize("statm", ["", "garbage", "1 x"])
def test_a_process_that_cannot_be_read_is_left_out(proc: MadeProc, statm: str) -> None:
    """One odd process must not blind the guard."""
    proc.process(10, pages=1, children={10: [20]})
    proc.process(20, pages=10)
    (proc.root / "20/statm").write_text(statm)
    assert tree_pages(MemorySensor(10, proc.root)) == 1


def test_a_process_listed_twice_counts_once(proc: MadeProc) -> None:
    """A child that changes its parent while the tree is walked shows up under both."""
    proc.process(10, pages=1, children={10: [20, 30]})
    proc.process(20, pages=10, children={20: [30]})
    proc.process(30, pages=100, children={30: [20]})
    assert tree_pages(MemorySensor(10, proc.root)) == 111


def test_without_any_reading_it_says_so(proc: MadeProc) -> None:
    """There is nothing to decide on, and zero would mean 'all is well'."""
    with pytest.raises(SensorError, match="memory of this worker's processes can't be read"):
        MemorySensor(10, proc.root).observe(0.0)
    proc.process(10, pages=1)
    (proc.root / "meminfo").write_text("MemTotal: 1 kB\n")
    with pytest.raises(SensorError, match="has no MemAvailable"):
        MemorySensor(10, proc.root).observe(0.0)
    (proc.root / "meminfo").unlink()
    with pytest.raises(SensorError, match="available memory can't be read"):
        MemorySensor(10, proc.root).observe(0.0)


def test_pages_that_children_share_with_their_parent_count_once(proc: MadeProc) -> None:
    """RSS says 300 pages, but 80 of them are the same in all three: PSS divides those by three."""
    proc.process(10, pages=100, children={10: [20, 30]})
    proc.process(20, pages=100)
    proc.process(30, pages=100)
    for pid in (10, 20, 30):
        proc.share(pid, pss_kilobytes=50 * PAGE_BYTES // 1024)
    assert tree_pages(MemorySensor(10, proc.root)) == 150


def test_a_process_whose_share_cannot_be_read_counts_in_full(proc: MadeProc) -> None:
    """Another user's process, say: too much is safer than too little."""
    proc.process(10, pages=100, children={10: [20]})
    proc.process(20, pages=100)
    proc.share(10, pss_kilobytes=50 * PAGE_BYTES // 1024)
    assert tree_pages(MemorySensor(10, proc.root)) == 150


@pytest.mark.parametrize(
    ("exact_above_pages", "exact_again_s"), [(0, 1 / sensors.DECISIVE_SHARE), (1000, 1 / sensors.INFORMATIVE_SHARE)]
)
def test_between_exact_readings_growth_is_seen_at_once(
    proc: MadeProc, monkeypatch: pytest.MonkeyPatch, exact_above_pages: int, exact_again_s: float
) -> None:
    """Exact readings cost too much for every look: what RSS adds counts at once, and is corrected by the next one."""
    ticks = iter(range(100))
    monkeypatch.setattr(
        "resource_guard.sensors.time.perf_counter", lambda: next(ticks)
    )  # each exact reading seems to take 1 s
    proc.process(10, pages=100)
    proc.share(10, pss_kilobytes=40 * PAGE_BYTES // 1024)
    sensor = MemorySensor(10, proc.root, exact_above_bytes=exact_above_pages * PAGE_BYTES)
    assert tree_pages(sensor, at=0.0) == 40
    proc.process(10, pages=130)
    proc.share(10, pss_kilobytes=60 * PAGE_BYTES // 1024)
    assert tree_pages(sensor, at=exact_again_s * 0.99) == 70
    assert tree_pages(sensor, at=exact_again_s) == 60


def test_an_estimate_never_leaves_what_is_possible(proc: MadeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not below nothing, when a child that shared most of its pages ends; not above the sum of RSS."""
    ticks = iter(range(100))
    monkeypatch.setattr("resource_guard.sensors.time.perf_counter", lambda: next(ticks))
    proc.process(10, pages=100)
    proc.share(10, pss_kilobytes=40 * PAGE_BYTES // 1024)
    sensor = MemorySensor(10, proc.root)
    assert tree_pages(sensor, at=0.0) == 40
    proc.process(10, pages=30)
    assert tree_pages(sensor, at=1.0) == 0
    proc.share(10, pss_kilobytes=200 * PAGE_BYTES // 1024)
    assert tree_pages(sensor, at=1000.0) == 30


@pytest.mark.parametrize(
    "make", [lambda: memory_sensor(os.getpid(), exact_above_bytes=0), lambda: PsutilMemorySensor(os.getpid())]
)
def test_on_the_real_machine_a_childs_memory_shows(make: object) -> None:
    """Either way of reading finds the 60 MB that a child has just taken."""
    sensor = make()  # type: ignore[operator]
    before = sensor.observe(0.0)
    code = "x = bytearray(b'x') * 60_000_000; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdin
        child.stdout.readline()
        during = sensor.observe(1e9)
        child.stdin.write(b"\n")
    assert 55_000_000 < during.tree_bytes - before.tree_bytes < 200_000_000
    assert 0 < before.available_bytes < psutil.virtual_memory().total


def test_psutil_says_so_when_there_is_nothing_to_read() -> None:
    """The same contract as the direct sensor."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with pytest.raises(SensorError):
        PsutilMemorySensor(gone.pid).observe(0.0)
