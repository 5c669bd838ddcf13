"""Which files a search covers, and why others are left out."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.files import PathMissing, SourceFile, batches, by_folder, check_exists, list_files


def names(*paths: Path) -> list[str]:
    return [file.name for file in list_files([str(path) for path in paths])[0]]


def reasons(*paths: Path) -> dict[str, str]:
    return {Path(path).name: reason for path, reason in list_files([str(path) for path in paths])[1]}


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)


class TestAFolder:
    def test_is_walked_in_sorted_order(self, tmp_path: Path) -> None:
        write(tmp_path / "b.txt", tmp_path / "a" / "z.txt", tmp_path / "a" / "c d" / "e.txt", tmp_path / "c.txt")
        assert names(tmp_path) == ["a/c d/e.txt", "a/z.txt", "b.txt", "c.txt"]

    def test_may_be_nested_deeper_than_python_recurses(self, tmp_path: Path) -> None:
        folders = [f"{tmp_path}{'/d' * depth}" for depth in range(1, 1501)]
        for folder in folders:
            os.mkdir(folder)  # noqa: PTH102
        file = Path(folders[-1], "f.txt")
        file.touch()
        assert names(tmp_path) == ["d/" * 1500 + "f.txt"]
        file.unlink()
        for folder in reversed(folders):  # pytest could not remove them either
            os.rmdir(folder)  # noqa: PTH106

    def test_leaves_out_copies_and_installed_code_as_one_entry_each(self, tmp_path: Path) -> None:
        write(*(tmp_path / folder / "x" / "f.txt" for folder in (".git", "node_modules", "__pycache__", ".hidden")))
        write(tmp_path / "env" / "pyvenv.cfg", tmp_path / ".secret", tmp_path / "kept.txt")
        assert names(tmp_path) == ["kept.txt"]
        assert reasons(tmp_path) == {
            ".git": "folder of version control, not searched",
            "node_modules": "folder of installed packages, not searched",
            "__pycache__": "folder of compiled Python, not searched",
            ".hidden": "hidden folder, not searched",
            "env": "folder of a virtual environment, not searched",
            ".secret": "hidden file, not searched",
        }

    def test_that_is_asked_for_is_searched_whatever_its_name(self, tmp_path: Path) -> None:
        write(tmp_path / ".venv" / "f.txt")
        assert names(tmp_path / ".venv") == ["f.txt"]

    def test_behind_a_link_is_not_followed(self, tmp_path: Path) -> None:
        """A link to a parent folder would never end."""
        write(tmp_path / "f.txt")
        (tmp_path / "loop").symlink_to(tmp_path)
        assert names(tmp_path) == ["f.txt"]
        assert reasons(tmp_path) == {"loop": "link to a folder, not followed"}

    def test_that_can_not_be_read_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "closed" / "f.txt", tmp_path / "open.txt")
        really_scan = os.scandir

        def scan(path: str) -> Any:
            if path.endswith("closed"):
                raise PermissionError(13, "Permission denied", path)
            return really_scan(path)

        monkeypatch.setattr(os, "scandir", scan)
        assert names(tmp_path) == ["open.txt"]
        assert reasons(tmp_path) == {"closed": "folder: can't be read: Permission denied"}


class TestAFile:
    def test_asked_for_is_taken_with_its_own_name(self, tmp_path: Path) -> None:
        write(tmp_path / ".hidden")
        (tmp_path / "link").symlink_to(tmp_path / ".hidden")
        assert names(tmp_path / ".hidden") == [".hidden"]
        assert names(tmp_path / "link") == ["link"]

    def test_is_taken_once_however_many_ways_lead_to_it(self, tmp_path: Path) -> None:
        write(tmp_path / "a.txt")
        (tmp_path / "b.txt").symlink_to("a.txt")
        (tmp_path / "c.txt").hardlink_to(tmp_path / "a.txt")
        assert names(tmp_path, tmp_path, tmp_path / "a.txt") == ["a.txt"]
        same = f"the same file as {tmp_path / 'a.txt'}"
        assert reasons(tmp_path) == {"b.txt": same, "c.txt": same}

    def test_behind_a_broken_link_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "broken").symlink_to("nothing")
        (tmp_path / "circle").symlink_to("circle")
        assert reasons(tmp_path) == {
            "broken": "link to nothing",
            "circle": "can't be read: Too many levels of symbolic links",
        }

    def test_that_is_a_pipe_or_a_socket_is_never_opened(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)  # a socket's path is limited in length
        os.mkfifo(tmp_path / "pipe")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")
            assert reasons(tmp_path) == dict.fromkeys(("pipe", "socket"), "not a file: a pipe, socket or device")
        assert reasons(tmp_path / "pipe") == {"pipe": "not a file: a pipe, socket or device"}

    def test_whose_name_is_not_utf8_is_named_so_that_it_can_be_read(self, tmp_path: Path) -> None:
        """No result could hold the name itself."""
        (tmp_path / os.fsdecode(b"\xe9t\xe9.txt")).touch()
        write(tmp_path / "été.txt")
        assert names(tmp_path) == ["été.txt"]
        assert reasons(tmp_path) == {"\\xe9t\\xe9.txt": "its name is not UTF-8"}


def test_a_missing_path_is_an_error_of_its_own(tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing here")
    with pytest.raises(PathMissing):  # no file has such a name
        check_exists("a\0b")
    for look in (check_exists, lambda path: list_files([path])):
        with pytest.raises(PathMissing, match=r"there is no file or folder '.*nothing here'") as caught:
            look(missing)
        assert caught.value.path == missing
        assert caught.value.args == (missing,)


class TestBatches:
    @given(sizes=st.lists(st.integers(0, 10**7), max_size=40), most=st.integers(1, 8))
    def test_hold_each_file_once_and_are_never_empty(self, sizes: list[int], most: int) -> None:
        files = [SourceFile("/data", f"{number:03}", size) for number, size in enumerate(sizes)]
        made = batches(files, most)
        assert sorted(file for batch in made for file in batch) == files
        assert 1 <= len(made) <= most
        assert all(made) or made == [[]]
        assert all(batch == sorted(batch) for batch in made)

    def test_are_of_about_equal_work(self) -> None:
        files = [SourceFile("/data", str(number), size) for number, size in enumerate([400, 300, 300, 200, 100, 100])]
        assert {sum(file.size_bytes for file in batch) for batch in batches(files, 2)} == {700}

    def test_are_fewer_when_there_is_little_to_do(self) -> None:
        files = [SourceFile("/data", str(number), 100) for number in range(10)]
        assert len(batches(files, 8, least_bytes=500)) == 2

    def test_are_sent_with_each_folder_once(self) -> None:
        files = [SourceFile("/a", "x", 1), SourceFile("/a", "y/z", 1), SourceFile("/b", "x", 1)]
        assert by_folder(files) == {"/a": ["x", "y/z"], "/b": ["x"]}
