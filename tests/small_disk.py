"""A small disk of a test's own, where this user may mount one, and what fills it from outside."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

MB = 1_000_000
_BLOCK_BYTES = 4096


@contextlib.contextmanager
def small_disk(folder: Path, size_mb: int) -> Iterator[bool]:
    """A disk of this size mounted at `folder`, until the end; False where this user may not mount one."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_mb * MB},mode=700", "agentlink-test", str(folder)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a worker may still have a file open there


@contextlib.contextmanager
def filled_disk(folder: Path, size_mb: int, taken_bytes: int) -> Iterator[Path]:
    """A disk of this size in a new folder, so much of it taken by the file `filler`. Where none can be, a skip."""
    folder.mkdir()
    with small_disk(folder, size_mb) as mounted:
        if not mounted:
            pytest.skip("needs the right to mount a disk")
        if taken_bytes:
            (folder / "filler").write_bytes(os.urandom(taken_bytes))
        yield folder


def free_bytes(folder: Path) -> int:
    """What the disk of a folder has left."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


class Ballast:
    """A file that takes the room on a small disk away."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ballast"

    def leave(self, left_bytes: int) -> None:
        """Grow until no more than this is left on the disk."""
        with self.path.open("ab", buffering=0) as file:
            while (excess_bytes := free_bytes(self.path.parent) - left_bytes) > 0:
                try:
                    file.write(bytes(max(_BLOCK_BYTES, min(excess_bytes, MB))))
                except OSError:  # somebody else has taken the last of it
                    return

    def remove(self) -> None:
        """Give it back."""
        self.path.unlink(missing_ok=True)
