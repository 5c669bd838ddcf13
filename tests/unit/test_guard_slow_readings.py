"""Disks, the data that AgentLink keeps and the broker: what is read of them, and that what hangs holds up nobody."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resource_guard import slow_readings
from resource_guard.limits import Limits
from resource_guard.observation import Reading, Resource
from resource_guard.slow_readings import SlowReadings, sizes_below
from tests.waiting import wait_until

GB = 1_000_000_000
LIMITS = Limits(memory_bytes=GB, disk_free_bytes=2 * GB, disk_free_fraction=0.1, disk_quota_bytes=3 * GB)


def disk(*, free_gb: float, total_gb: float, free_inodes: int = 900, total_inodes: int = 1000) -> Any:
    return SimpleNamespace(
        f_bavail=int(free_gb * 1e6),
        f_blocks=int(total_gb * 1e6),
        f_frsize=1000,
        f_favail=free_inodes,
        f_files=total_inodes,
    )


Make = Callable[..., SlowReadings]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Readings that look fifty times a second."""
    monkeypatch.setattr(slow_readings, "LOOK_S", 0.02)
    made: list[SlowReadings] = []

    def make(**arguments: Any) -> SlowReadings:
        defaults = {"data_paths": [], "home": tmp_path, "broker": lambda: None}
        made.append(SlowReadings(lambda: LIMITS, **(defaults | arguments)))
        return made[-1]

    yield make
    for one in made:
        one.close()


class TestDisks:
    @pytest.fixture(autouse=True)
    def disks(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        disks: dict[str, Any] = {}
        monkeypatch.setattr(os, "statvfs", lambda path: disks[str(path)])
        return disks

    @pytest.mark.parametrize(("total_gb", "floor_gb"), [(10, 1), (20, 2), (1000, 2)])
    def test_the_floor_is_the_smaller_of_size_and_share(
        self, make: Make, disks: dict[str, Any], total_gb: float, floor_gb: float
    ) -> None:
        """Ten percent of a large disk is too much to ask, two gigabytes of a small one too."""
        disks["/a"] = disk(free_gb=0.5, total_gb=total_gb)
        assert make(data_paths=[Path("/a")]).readings()[Resource.DISK_FREE] == Reading(
            value=0.5 * GB, limit=floor_gb * GB, floor=True, where="/a"
        )

    def test_the_worst_of_all_paths_is_told(self, make: Make, disks: dict[str, Any]) -> None:
        """Nearest to its floor, not the one with fewest bytes."""
        disks |= {"/large": disk(free_gb=2.1, total_gb=1000), "/small": disk(free_gb=0.9, total_gb=5)}
        paths = [Path("/small"), Path("/large")]
        assert make(data_paths=paths).readings()[Resource.DISK_FREE].where == "/large"

    def test_a_disk_can_be_full_of_files_that_are_small(self, make: Make, disks: dict[str, Any]) -> None:
        """Then nothing more can be made on it, whatever bytes are left."""
        disks["/a"] = disk(free_gb=500, total_gb=1000, free_inodes=40)
        reading = make(data_paths=[Path("/a")]).readings()[Resource.DISK_FREE]
        assert reading == Reading(value=40, limit=50, floor=True, where="/a", unit="inodes")

    def test_some_have_no_fixed_number_of_files(self, make: Make, disks: dict[str, Any]) -> None:
        disks["/a"] = disk(free_gb=500, total_gb=1000, free_inodes=0, total_inodes=0)
        assert make(data_paths=[Path("/a")]).readings()[Resource.DISK_FREE].unit == ""

    def test_a_path_that_cannot_be_read_is_left_out(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        def gone(_path: object) -> None:
            raise FileNotFoundError

        monkeypatch.setattr(os, "statvfs", gone)
        assert make(data_paths=[Path("/a")]).readings() == {}

    def test_they_are_looked_at_again(self, make: Make, disks: dict[str, Any]) -> None:
        disks["/a"] = disk(free_gb=20, total_gb=1000)
        readings = make(data_paths=[Path("/a")])
        assert readings.readings()[Resource.DISK_FREE].value == 20 * GB
        disks["/a"] = disk(free_gb=1, total_gb=1000)
        wait_until(lambda: readings.readings()[Resource.DISK_FREE].value == GB, what="the fuller disk")


class TestTheDataThatIsKept:
    def test_is_added_up(self, make: Make, tmp_path: Path) -> None:
        """What it takes on the disk, in all folders below; a link's target is not in it."""
        (tmp_path / "a/b").mkdir(parents=True)
        (tmp_path / "a/b/file").write_bytes(b"x" * 1_000_000)
        (tmp_path / "a/link").symlink_to("/usr")
        readings = make()
        wait_until(lambda: Resource.DISK_QUOTA in readings.readings(), what="the sum")
        reading = readings.readings()[Resource.DISK_QUOTA]
        assert 1_000_000 <= reading.value < 1_100_000
        assert (reading.limit, reading.where) == (3 * GB, str(tmp_path))

    def test_is_added_up_again_and_again(self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(slow_readings, "QUOTA_S", 0.05)
        readings = make()
        wait_until(lambda: Resource.DISK_QUOTA in readings.readings(), what="the sum")
        (tmp_path / "file").write_bytes(b"x" * 1_000_000)
        wait_until(lambda: readings.readings()[Resource.DISK_QUOTA].value >= 1_000_000, what="the larger sum")

    def test_in_slices_of_two_milliseconds(self, tmp_path: Path) -> None:
        """Between them others get the interpreter: one worker's event loop, say."""
        for number in range(3000):
            (tmp_path / str(number)).touch()
        sizes, slices = sizes_below(tmp_path), 0
        while True:
            slices += 1
            _, took_s, ended = slow_readings._add_up(sizes)
            if ended:
                break
            assert took_s > slow_readings._SLICE_S
        assert slices > 1

    def test_is_not_looked_for_when_nobody_asks(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """A walk through many files costs something."""
        monkeypatch.setattr(slow_readings, "sizes_below", lambda _folder: pytest.fail("walks"))
        readings = make()
        readings._limits_of = lambda: Limits(memory_bytes=GB, marks={})
        asked: list[int] = []
        readings._broker = lambda: asked.append(1)  # type: ignore[func-returns-value,assignment,return-value]
        readings.readings()
        wait_until(lambda: len(asked) > 3, what="some looks")
        assert Resource.DISK_QUOTA not in readings.readings()

    def test_what_vanishes_meanwhile_is_left_out(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a/file").write_bytes(b"x" * 1_000_000)
        (tmp_path / "z").write_bytes(b"x" * 1_000_000)
        sizes = sizes_below(tmp_path)
        total = next(sizes)
        (tmp_path / "a/file").unlink()
        (tmp_path / "a").rmdir()
        assert total + sum(sizes) < 1_100_000
        assert list(sizes_below(tmp_path / "a")) == []


class TestTheBroker:
    def test_tells_what_it_uses_of_what_it_may(self, make: Make) -> None:
        readings = make(broker=lambda: (700, 1000))
        wait_until(lambda: Resource.BROKER_MEMORY in readings.readings(), what="the broker's answer")
        assert readings.readings()[Resource.BROKER_MEMORY] == Reading(value=700, limit=1000)

    def test_that_fails_is_left_out_until_it_answers_again(self, make: Make) -> None:
        """Whatever the error is: it is not the guard's."""
        answers: list[Any] = [(700, 1000)]

        def broker() -> tuple[int, int]:
            if isinstance(answers[-1], Exception):
                raise answers[-1]
            return answers[-1]  # type: ignore[no-any-return]

        readings = make(broker=broker)
        for answer, known in [((700, 1000), True), (RuntimeError("away"), False), ((1, 2), True), ((1, 0), False)]:
            answers.append(answer)
            wait_until(lambda known=known: (Resource.BROKER_MEMORY in readings.readings()) == known, what="a change")  # type: ignore[misc]


def test_one_that_hangs_holds_up_nobody_and_is_unknown_after_a_while(make: Make) -> None:
    """A broker, or a network disk: the guard goes on looking at memory."""
    now, hangs, released = [0.0], threading.Event(), threading.Event()

    def broker() -> None:
        hangs.set()
        released.wait(30)

    readings = make(broker=broker, data_paths=[Path("/")], clock=lambda: now[0])
    began_s = time.monotonic()
    assert Resource.DISK_FREE in readings.readings()
    now[0] = 5.0
    hangs.wait(10)
    assert Resource.DISK_FREE in readings.readings()
    now[0] = 5.1 + slow_readings.STALE_S
    assert readings.readings() == {}
    assert time.monotonic() - began_s < 5
    released.set()
    wait_until(lambda: Resource.DISK_FREE in readings.readings(), what="the readings after it")


def test_close_ends_the_thread_and_reading_starts_another(make: Make) -> None:
    """A guard may stop and start again."""
    readings = make(broker=lambda: (700, 1000))
    for _ in range(2):
        wait_until(lambda: Resource.BROKER_MEMORY in readings.readings(), what="the broker's answer")
        (thread,) = (one for one in threading.enumerate() if one.name == "resource-guard-slow")
        readings.close()
        assert not thread.is_alive()
