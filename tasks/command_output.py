"""What a program writes: the first part of a stream in memory and, of a long one, all of it in a file."""

from __future__ import annotations

import codecs
import os
from pathlib import Path
from typing import IO

from tasks.command_errors import CommandOutputLost

TAIL_BYTES = 2000
READ_BYTES = 65536  # what a pipe holds


class Output:
    """One output stream of the program `words`; the file `path` is made once there are more than `cap_bytes`."""

    def __init__(self, words: list[str], pipe: IO[bytes], path: Path, cap_bytes: int) -> None:
        self.pipe = pipe
        os.set_blocking(pipe.fileno(), False)
        self._words, self._path, self._cap_bytes = words, path, cap_bytes
        self._first, self._last = bytearray(), bytearray()
        self._file: IO[bytes] | None = None

    @property
    def file_name(self) -> str | None:
        """The file that holds all of the stream, if it was too long for memory."""
        return str(self._path) if self._file else None

    def take(self) -> bool:
        """Take a piece of what there is now; False if there is nothing.

        Raises:
            CommandOutputLost: the file can't be written.
        """
        try:
            piece = os.read(self.pipe.fileno(), READ_BYTES)
        except BlockingIOError:
            return False
        try:
            self._keep(piece)
        except OSError as error:
            raise CommandOutputLost(self._words, str(self._path), error.strerror or str(error)) from error
        return bool(piece)

    def _keep(self, piece: bytes) -> None:
        if self._file is None and len(self._first) + len(piece) > self._cap_bytes:
            _make_private_folder(self._path.parent)
            self._file = self._path.open("wb", buffering=0)  # no buffer: a full disk shows at once
            _write_all(self._file, self._first)
        if self._file is not None:
            _write_all(self._file, piece)
        self._first += piece[: max(0, self._cap_bytes - len(self._first))]
        self._last = (self._last + piece)[-TAIL_BYTES:]

    def text(self) -> str:
        """The first part, as text."""
        # Not final when cut: half a character at the end of the first part is left out instead of shown as damaged.
        return codecs.getincrementaldecoder("utf-8")("replace").decode(bytes(self._first), final=self._file is None)

    def tail(self) -> str:
        """The last part, as text."""
        return self._last.decode(errors="replace")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _make_private_folder(folder: Path) -> None:
    for missing in [part for part in (folder, *folder.parents) if not part.exists()][::-1]:
        missing.mkdir(mode=0o700, exist_ok=True)


def _write_all(file: IO[bytes], content: bytes | bytearray) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
