"""Values in files: whole or not there, stored once, gone when they may go."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
import zstandard

from resource_guard.errors import ResultLost, StorageFull
from resource_guard.large_values import Reference
from resource_guard.storage import Storage
from tests.small_disk import filled_disk

VALUE = b'{"a": "' + b"large " * 50_000 + b'"}'


@pytest.fixture(params=["folder", "memory"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder, and a place that is none: what is shared by machines has no renames and no times of ours."""
    return str(tmp_path / "results") if request.param == "folder" else f"memory://{uuid4().hex}/results"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "results"))


def _path(storage: Storage, reference: Reference) -> Path:
    return Path(storage.path(reference.digest))


def _all_files(storage: Storage) -> list[Path]:
    return [path for path in Path(storage.path("")).parents[1].rglob("*") if path.is_file()]


def test_a_value_comes_back(location: str) -> None:
    storage = Storage(location)
    reference = storage.put([VALUE[:1000], b"", VALUE[1000:]])
    assert reference == Reference(digest=hashlib.sha256(VALUE).hexdigest(), size_bytes=len(VALUE))
    assert Storage(location).read(reference, "task") == VALUE
    [file] = storage.files()
    assert (file.digest, file.stored_bytes < len(VALUE) / 10) == (reference.digest, True)
    assert abs(file.written_at - time.time()) < 10


def test_a_value_stored_again_is_one_file_that_is_young_again(location: str) -> None:
    storage = Storage(location)
    reference = storage.put([VALUE])
    [first] = storage.files()
    assert storage.put([VALUE]) == reference
    [second] = storage.files()
    assert second.written_at > first.written_at


def test_a_removed_value_is_gone(location: str) -> None:
    storage = Storage(location)
    reference = storage.put([VALUE])
    [file] = storage.files()
    assert storage.remove(file)
    assert not storage.remove(file)
    assert storage.files() == []
    with pytest.raises(ResultLost, match=r"the result of task t7 is lost: its file .* is not there"):
        storage.read(reference, "t7")


def test_what_is_stored_again_after_it_was_listed_is_not_removed(location: str) -> None:
    """A sweep takes a while between looking and removing."""
    storage = Storage(location)
    reference = storage.put([VALUE])
    [listed] = storage.files()
    storage.put([VALUE])
    assert not storage.remove(listed)
    assert storage.read(reference, "task") == VALUE


def test_only_its_owner_can_look_into_the_folder(storage: Storage) -> None:
    reference = storage.put([VALUE])
    assert _path(storage, reference).parents[1].stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", ["cut", "changed", "another", "longer", "empty"])
def test_a_broken_file_is_never_taken_for_its_value(storage: Storage, damage: str) -> None:
    """One error, which names the task, the file, and what may have happened to it."""
    reference, other = storage.put([VALUE]), storage.put([VALUE.replace(b"large", b"LARGE")])
    path = _path(storage, reference)
    whole = path.read_bytes()
    broken = {
        "cut": whole[:-7],
        "changed": whole[:40] + bytes([whole[40] ^ 1]) + whole[41:],
        "another": _path(storage, other).read_bytes(),
        "longer": _path(storage, storage.put([VALUE + b" "])).read_bytes(),
        "empty": b"",
    }
    path.write_bytes(broken[damage])
    with pytest.raises(ResultLost) as raised:
        storage.read(reference, "task-7")
    assert (raised.value.task_id, raised.value.file) == ("task-7", str(path))
    assert "AGENTLINK_DISK_QUOTA" in str(raised.value)
    storage.put([VALUE])
    assert storage.read(reference, "task-7") == VALUE


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left"), OSError(errno.EDQUOT, "Quota exceeded")])
def test_no_room_is_an_error_of_its_own_and_leaves_nothing_behind(storage: Storage, fault: OSError) -> None:
    def chunks() -> Iterator[bytes]:
        yield VALUE
        raise fault

    with pytest.raises(StorageFull, match=str(fault.strerror)):
        storage.put(chunks())
    assert _all_files(storage) == []


def test_whatever_interrupts_it_nothing_is_left_behind(storage: Storage) -> None:
    def chunks() -> Iterator[bytes]:
        yield VALUE
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.put(chunks())
    assert _all_files(storage) == []


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    """Some signs mean more in addresses."""
    storage = Storage(str(tmp_path / "a::b *?[c]#%20~ ü" / "results"))
    reference = storage.put([VALUE])
    assert storage.read(reference, "task") == VALUE
    [file] = storage.files()
    assert storage.remove(file)
    assert [path.name for path in tmp_path.iterdir()] == ["a::b *?[c]#%20~ ü"]


def test_many_writers_of_the_same_and_of_others_disturb_nobody(storage: Storage) -> None:
    """A remover is at work too: readers find the value whole or not at all, and what is written last is there."""
    values = [b"%d " % number + VALUE for number in range(3)]
    first = storage.put([values[0]])

    def remove() -> None:
        for _ in range(30):
            for file in storage.files():
                storage.remove(file)

    def write(number: int) -> Reference:
        return [storage.put([values[number % 3]]) for _ in range(20)][-1]

    def read() -> None:
        for _ in range(60):
            with contextlib.suppress(ResultLost):
                assert storage.read(first, "task") == values[0]

    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(remove), pool.submit(read), *(pool.submit(write, number) for number in range(6))]
        for future in done:
            future.result()
    assert storage.clear(time.time()) == 0
    for value in values:
        storage.put([value])
    assert len(_all_files(storage)) == 3


def test_a_value_written_while_a_remover_is_in_the_middle_stays(storage: Storage) -> None:
    """It has taken the file aside and not looked yet; the writer finds none and writes its own."""
    reference = storage.put([VALUE])
    [listed] = storage.files()
    aside = storage._taken_aside(storage.path(reference.digest), reference.digest)
    with pytest.raises(ResultLost):
        storage.read(reference, "task")
    storage.put([VALUE])
    storage._put_back(aside)
    [now] = storage.files()
    assert now.written_at > listed.written_at


def test_what_a_remover_left_in_the_middle_comes_back(storage: Storage) -> None:
    """It was killed: nobody knows whether the value has been stored again since."""
    reference = storage.put([VALUE])
    storage._taken_aside(storage.path(reference.digest), reference.digest)
    assert storage.clear(time.time()) == 1
    assert storage.read(reference, "task") == VALUE


WRITER = """
import itertools, os, sys
from resource_guard.storage import Storage
storage = Storage(sys.argv[1])
print("ready", flush=True)
for number in itertools.count():
    block = os.urandom(1 << 16)
    storage.put(block + b"%d" % number for number in range(100))
"""


def test_kill_9_while_writing_leaves_no_broken_file(storage: Storage, tmp_path: Path) -> None:
    """Twenty times, at any moment: what has a value's name is that value, and what has not is swept."""
    moments = random.Random(7)
    unfinished = 0
    for _ in range(20):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "results")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(moments.uniform(0, 0.1))
            writer.kill()
        left = list((tmp_path / "results" / "writing").glob("*"))
        unfinished += len(left)
        assert storage.clear(time.time()) == 0, "what is young is left alone"
        assert storage.clear(time.time() + 30) == len(left)
    assert unfinished > 5
    files = storage.files()
    assert len(files) > 5
    assert sorted(_all_files(storage)) == sorted(Path(storage.path(file.digest)) for file in files)
    for file in files:
        storage.read(Reference(digest=file.digest, size_bytes=_size(storage, file.digest)), "task")


def _size(storage: Storage, digest: str) -> int:
    with Path(storage.path(digest)).open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
        return len(reader.readall())


def test_what_others_are_writing_is_left_alone_until_it_has_not_grown_for_an_hour(
    storage: Storage, tmp_path: Path
) -> None:
    """On another machine nobody can tell whether a process lives; of our own we can."""
    folder = tmp_path / "results" / "writing"
    storage.put([VALUE])
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    elsewhere, here, gone = (
        folder / name for name in ("other.host~1~a", f"{os.uname().nodename}~{os.getpid()}~b",
                                   f"{os.uname().nodename}~{ended.pid}~c")
    )  # fmt: skip
    for path in (elsewhere, here, gone):
        path.write_bytes(b"half")
    assert storage.clear(time.time() + 60) == 1
    assert (elsewhere.exists(), here.exists(), gone.exists()) == (True, True, False)
    assert storage.clear(time.time() + 4000) == 2


def test_a_small_disk_that_is_full_is_told_as_such(tmp_path: Path) -> None:
    """A real one: the kernel says so in the middle of a file, or only as it is flushed."""
    with filled_disk(tmp_path / "disk", 2, 0) as disk:
        storage = Storage(str(disk / "results"))
        small = storage.put([os.urandom(500_000)])
        with pytest.raises(StorageFull):
            storage.put(os.urandom(100_000) for _ in range(50))
        assert [file.digest for file in storage.files()] == [small.digest]
        assert len(_all_files(storage)) == 1
        storage.put([os.urandom(500_000)])


def test_a_folder_that_is_not_there_yet_is_empty_and_made_with_the_first_value(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "later" / "results"))
    assert storage.files() == []
    assert storage.clear(time.time()) == 0
    storage.put([VALUE])
    assert len(storage.files()) == 1
