"""Small files of the kernel's that are read ten times a second: opening one costs more than reading it."""

from __future__ import annotations

import os

# Of /proc and /sys, which make a file's text anew for each reading from its start.
_READ_BYTES = 8192


class KeptFiles:
    """Files kept open from one reading to the next, at most `most` of them; the rest is opened each time.

    A file of a process that has ended can't be read any more, even if another process has got its number; then it is
    opened anew.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._open)

    def read(self, path: str) -> bytes:
        """All of it.

        Raises:
            OSError: it can't be read.
        """
        fd = self._open.get(path)
        if fd is not None:
            try:
                return _read_from_start(fd)
            except OSError:
                self.forget(path)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        keep = len(self._open) < self._most
        try:
            text = _read_from_start(fd)
        except OSError:
            keep = False
            raise
        finally:
            if keep:
                self._open[path] = fd
            else:
                os.close(fd)
        return text

    def forget(self, path: str) -> None:
        """It won't be read again."""
        fd = self._open.pop(path, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Close all; reading one opens it again."""
        for path in list(self._open):
            self.forget(path)


def kilobytes(text: bytes, name: bytes) -> int | None:
    """The bytes in the line `name   123 kB`; None without such a line."""
    at = text.find(name)
    if at < 0:
        return None
    return int(text[at + len(name) : text.index(b"kB", at)]) * 1024


def _read_from_start(fd: int) -> bytes:
    text = os.pread(fd, _READ_BYTES, 0)
    if len(text) < _READ_BYTES:
        return text
    parts = [text]
    while part := os.pread(fd, _READ_BYTES, sum(map(len, parts))):
        parts.append(part)
    return b"".join(parts)
