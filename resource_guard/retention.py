"""What may go of the data that AgentLink keeps, and what must stay. Plain functions over what is found and known.

A result stays as long as results are kept, or longer while a run that it belongs to goes on. When all data together
outgrow the quota, the oldest results go before their time, but none of a run that goes on, and none so young that
whoever waits for it may not have read it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from resource_guard.storage import StoredFile

#: A file is older than the broker's reference to it by as long as the broker took to be told.
_TOLD_WITHIN_S = 5.0
#: Younger results stay, whatever the quota.
_YOUNG_S = 600.0

#: Which of these digests belong to runs that go on.
Held = Callable[[Sequence[str]], Collection[str]]


def files_to_remove(
    files: Sequence[StoredFile], held: Held, *, now: float, keep_s: float, excess_bytes: int
) -> tuple[list[StoredFile], list[StoredFile]]:
    """The files that have had their time, and those that go before it since there are `excess_bytes` too many.

    The first go anyway, and count towards the excess. `now` is in seconds since 1970.
    """
    oldest_first = sorted(files, key=lambda file: file.written_at)
    old = [file for file in oldest_first if now - file.written_at > keep_s + _TOLD_WITHIN_S]
    expired = _not_held(old, held)
    excess_bytes -= sum(file.stored_bytes for file in expired)
    if excess_bytes <= 0:
        return expired, []
    gone = {file.digest for file in expired}
    rest = [file for file in oldest_first if file.digest not in gone and now - file.written_at > _YOUNG_S]
    crowded_out = []
    for file in _not_held(rest, held):
        if excess_bytes <= 0:
            break
        crowded_out.append(file)
        excess_bytes -= file.stored_bytes
    return expired, crowded_out


def _not_held(files: Sequence[StoredFile], held: Held) -> list[StoredFile]:
    staying = held([file.digest for file in files]) if files else ()
    return [file for file in files if file.digest not in staying]


def folders_to_remove(
    runs: Path, known: Callable[[Sequence[str]], Collection[str]], *, now: float, keep_s: float
) -> list[Path]:
    """The folders of runs that nobody knows any more and that nothing was written into as long as results are kept.

    `known` says which of these runs are known; tasks outside any run have folders too, by their own ids.
    """
    before = now - keep_s - _TOLD_WITHIN_S
    old = [entry.name for entry in _entries(runs) if entry.is_dir(follow_symlinks=False) and _written(entry) < before]
    kept = known(old) if old else ()
    return [
        runs / name
        for name in old
        if name not in kept and all(_written(entry) < before for entry in _all_entries(runs / name))
    ]


def folder_bytes(folder: Path) -> int:
    """What the files below a folder take on the disk."""
    return sum(_disk_bytes(entry) for entry in _all_entries(folder))


def _all_entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    for entry in _entries(folder):
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _all_entries(Path(entry.path))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # gone meanwhile, or closed to us
        return []


def _written(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat(follow_symlinks=False).st_mtime
    except OSError:
        return 0.0


def _disk_bytes(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_blocks * 512
    except OSError:
        return 0
