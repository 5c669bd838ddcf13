"""Which files a search covers.

Everything that is not searched is named with a reason. Links to folders are not followed, so a walk always ends; what
is not a regular file is never opened, so a pipe can't block a worker. Files whose name is not UTF-8 are left out: their
name could not be written into a result.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from tasks.errors import TaskError

MAX_TEXT_BYTES = 5_000_000
MAX_PDF_BYTES = 50_000_000

# How much longer a byte of a PDF takes to read than a byte of text, roughly.
_PDF_WEIGHT = 20

# ValueError: a name that no file can have, with a NUL in it, say.
_NOTHING_THERE = (FileNotFoundError, NotADirectoryError, ValueError)

# Folders that hold copies, products or installed code: never what a question is about, often most of the files.
_FOLDERS_LEFT_OUT = {
    ".git": "version control",
    ".hg": "version control",
    ".svn": "version control",
    "__pycache__": "compiled Python",
    "node_modules": "installed packages",
    "site-packages": "installed packages",
    "dist-packages": "installed packages",
    ".venv": "a virtual environment",
    "venv": "a virtual environment",
    ".tox": "virtual environments",
    ".nox": "virtual environments",
    ".cache": "a cache",
    ".mypy_cache": "a cache",
    ".pytest_cache": "a cache",
    ".ruff_cache": "a cache",
    ".hypothesis": "a cache",
}


class PathMissing(TaskError):
    """A path to be searched does not exist."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"there is no file or folder {self.path!r}"


class SourceFile(NamedTuple):
    """A file to search: its name is its path below the folder that was asked for, or that holds the file asked for."""

    folder: str
    name: str
    size_bytes: int

    @property
    def path(self) -> str:
        """Where the file is."""
        return os.path.join(self.folder, self.name)  # noqa: PTH118


class Skipped(NamedTuple):
    """Something that was not searched, and why."""

    path: str
    reason: str


def list_files(paths: Sequence[str]) -> tuple[list[SourceFile], list[Skipped]]:
    """Every file at or below `paths`, in sorted order and each once, and what is left out.

    Raises:
        PathMissing: one of `paths` does not exist.
    """
    walk = _Walk()
    for path in paths:
        walk.add(path)
    return walk.files, walk.skipped


def check_exists(path: str) -> None:
    """Say so now if there is nothing at `path`; what is there but can't be read is left to the walk.

    Raises:
        PathMissing: there is nothing.
    """
    try:
        os.stat(path)  # noqa: PTH116
    except _NOTHING_THERE:
        raise PathMissing(path) from None
    except OSError:
        return


def batches(files: Sequence[SourceFile], most: int, least_bytes: int = 1) -> list[list[SourceFile]]:
    """At least one and at most `most` groups of about equal work, at least `least_bytes` each, in sorted order."""
    count = min(most, len(files), sum(map(_work, files)) // least_bytes)
    groups: list[list[SourceFile]] = [[] for _ in range(max(1, count))]
    loads = [0] * len(groups)
    for file in sorted(files, key=_work, reverse=True):
        lightest = loads.index(min(loads))
        groups[lightest].append(file)
        loads[lightest] += _work(file)
    return [sorted(group) for group in groups]


def by_folder(batch: Sequence[SourceFile]) -> dict[str, list[str]]:
    """A batch as a message carries it: each folder once, with the names below it."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    for file in batch:
        names[file.folder].append(file.name)
    return dict(names)


def _work(file: SourceFile) -> int:
    if file.name.lower().endswith(".pdf"):
        return min(file.size_bytes, MAX_PDF_BYTES) * _PDF_WEIGHT + 1
    return min(file.size_bytes, MAX_TEXT_BYTES) + 1


class _Walk:
    """Collects files and what is left out; knows what it has seen, so that links and overlapping paths add nothing."""

    def __init__(self) -> None:
        self.files: list[SourceFile] = []
        self.skipped: list[Skipped] = []
        self._seen: dict[tuple[int, int], str] = {}

    def add(self, path: str) -> None:
        """Add a path that was asked for: a folder with all below it, or a file, through a link too."""
        try:
            status = os.stat(path)  # noqa: PTH116 - strings all the way: a Path object for each file costs time
        except _NOTHING_THERE:
            raise PathMissing(path) from None
        except OSError as error:
            self._skip(path, reason_of(error))
            return
        if stat.S_ISDIR(status.st_mode):
            self._add_folder(path)
        else:
            self._add_file(*os.path.split(path), status)

    def _add_folder(self, root: str) -> None:
        # A stack of its own: folders may be nested deeper than Python recurses.
        pending = self._entries(root)
        while pending:
            entry = pending.pop()
            if why := _why_left_out(entry):
                self._skip(entry.path, why)
            elif entry.is_dir(follow_symlinks=False):
                pending += self._entries(entry.path)
            else:
                self._add_entry(entry, root)

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        """What is in a folder, the last name first."""
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            self._skip(folder, f"folder: {reason_of(error)}")
            return []

    def _add_entry(self, entry: os.DirEntry[str], root: str) -> None:
        try:
            status = entry.stat()
        except FileNotFoundError:
            self._skip(entry.path, "link to nothing" if entry.is_symlink() else "vanished")
        except OSError as error:
            self._skip(entry.path, reason_of(error))
        else:
            self._add_file(root, os.path.relpath(entry.path, root), status)

    def _add_file(self, folder: str, name: str, status: os.stat_result) -> None:
        path = os.path.join(folder, name)  # noqa: PTH118
        if not stat.S_ISREG(status.st_mode):
            self._skip(path, "not a file: a pipe, socket or device")
            return
        if not is_utf8(path):
            self._skip(path, "its name is not UTF-8")
            return
        first = self._seen.setdefault((status.st_dev, status.st_ino), path)
        if first is path:
            self.files.append(SourceFile(folder, name, status.st_size))
        elif first != path:
            self._skip(path, f"the same file as {first}")

    def _skip(self, path: str, reason: str) -> None:
        self.skipped.append(Skipped(os.fsencode(path).decode("utf-8", "backslashreplace"), reason))


def is_utf8(path: str) -> bool:
    """Whether a path can be written as text; Python stands lone surrogates in for bytes that can't."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _why_left_out(entry: os.DirEntry[str]) -> str | None:
    try:
        is_folder = entry.is_dir()
    except OSError:  # a link in a circle, say
        is_folder = False
    if not is_folder:
        return "hidden file, not searched" if entry.name.startswith(".") else None
    if entry.is_symlink():
        return "link to a folder, not followed"
    if what := _FOLDERS_LEFT_OUT.get(entry.name):
        return f"folder of {what}, not searched"
    if entry.name.startswith("."):
        return "hidden folder, not searched"
    if os.path.exists(f"{entry.path}/pyvenv.cfg"):  # noqa: PTH110
        return "folder of a virtual environment, not searched"
    return None


def reason_of(error: OSError) -> str:
    """Why the system did not give us a file, for people."""
    return f"can't be read: {error.strerror or error}"
