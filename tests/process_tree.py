"""A program whose processes try to survive it, and how to see whether they did."""

from __future__ import annotations

from pathlib import Path

import psutil

from tests.waiting import wait_until

#: Leaves one process in the background and one daemon (forked twice, session of its own); all but one ignore SIGTERM.
TREE = """
sleep 1000 &
echo $! > {folder}/background
trap '' TERM
setsid sh -c 'sleep 1000 & echo $! > {folder}/daemon'
echo $$ > {folder}/program
"""


def tree(folder: Path, then: str = "sleep 1000 && true") -> str:
    """The text for a shell: start the tree, whose process ids are in `folder`, and then do something."""
    folder.mkdir(exist_ok=True)
    return TREE.format(folder=folder) + then


def pids(folder: Path) -> list[int]:
    """The process ids of a tree, waited for."""
    return [_pid(folder / name) for name in ("program", "background", "daemon")]


def _pid(file: Path) -> int:
    return int(wait_until(lambda: file.exists() and file.read_text().strip(), what=f"a process id in {file.name}"))


def alive(process_ids: list[int]) -> list[int]:
    """Those that have not ended; a zombie has."""
    return [pid for pid in process_ids if _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
