"""What goes of the stored results and of the runs' folders, and what stays."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from resource_guard.retention import files_to_remove, folder_bytes, folders_to_remove
from resource_guard.storage import StoredFile

NOW, HOUR = 1_000_000.0, 3600.0


def _file(name: str, hours: float, stored_bytes: int = 100) -> StoredFile:
    return StoredFile(digest=name, stored_bytes=stored_bytes, written_at=NOW - hours * HOUR)


def _none_held(digests: Sequence[str]) -> Collection[str]:
    return ()


@pytest.mark.parametrize(
    ("held", "excess_bytes", "expired", "crowded_out"),
    [
        pytest.param("", 0, "de", "", id="those past their time go"),
        pytest.param("", -500, "de", "", id="and no others while there is room"),
        pytest.param("e", 0, "d", "", id="but none of a run that goes on"),
        pytest.param("", 200, "de", "", id="what has gone makes room"),
        pytest.param("", 201, "de", "c", id="then the oldest go before their time"),
        pytest.param("c", 201, "de", "b", id="but none of a run that goes on, then either"),
        pytest.param("", 9999, "de", "bc", id="nor one that may not have been read yet"),
        pytest.param("abcde", 9999, "", "", id="nothing goes where all is held"),
    ],
)
def test_which_files_go(held: str, excess_bytes: int, expired: str, crowded_out: str) -> None:
    files = [_file("c", 3), _file("e", 12), _file("a", 0.1), _file("d", 11), _file("b", 2)]
    gone = files_to_remove(
        files, lambda digests: set(held) & set(digests), now=NOW, keep_s=10 * HOUR, excess_bytes=excess_bytes
    )
    assert ["".join(sorted(file.digest for file in part)) for part in gone] == [expired, crowded_out]


def test_the_oldest_go_first() -> None:
    files = [_file("new", 2), _file("oldest", 9), _file("older", 8)]
    _, crowded_out = files_to_remove(files, _none_held, now=NOW, keep_s=10 * HOUR, excess_bytes=150)
    assert [file.digest for file in crowded_out] == ["oldest", "older"]


def test_nobody_is_asked_when_nothing_is_old() -> None:
    def ask(digests: Sequence[str]) -> Collection[str]:
        raise AssertionError(digests)

    assert files_to_remove([_file("a", 1)], ask, now=NOW, keep_s=10 * HOUR, excess_bytes=0) == ([], [])


def _folder(runs: Path, name: str, hours: float, deep_hours: float | None = None) -> Path:
    deep = runs / name / "step" / "stdout"
    deep.parent.mkdir(parents=True)
    deep.write_text("said")
    for path, age in ((deep, deep_hours or hours), (deep.parent, hours), (runs / name, hours)):
        os.utime(path, (NOW - age * HOUR, NOW - age * HOUR))
    return runs / name


def test_folders_go_when_nobody_knows_their_run_and_nothing_was_written_there_for_long(tmp_path: Path) -> None:
    forgotten = _folder(tmp_path, "forgotten", 12)
    _folder(tmp_path, "known", 12)
    _folder(tmp_path, "young", 1)
    _folder(tmp_path, "written-to", 12, deep_hours=1)
    (tmp_path / "a file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "known")
    gone = folders_to_remove(tmp_path, lambda runs: {"known"} & set(runs), now=NOW, keep_s=10 * HOUR)
    assert gone == [forgotten]


def test_a_folder_that_is_not_there_has_nothing_to_remove(tmp_path: Path) -> None:
    assert folders_to_remove(tmp_path / "none", _none_held, now=NOW, keep_s=HOUR) == []
    assert folder_bytes(tmp_path / "none") == 0


def test_a_folder_takes_what_its_files_take_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(os.urandom(1_000_000))
    (tmp_path / "deep" / "outside").symlink_to("/proc")
    assert folder_bytes(tmp_path) == pytest.approx(1_000_000, rel=0.05)
