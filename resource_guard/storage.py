"""Large values in files: named for what is in them, compressed, whole or not there.

    LOCATION/ab/abcdef….zst     a value: the file's name is the SHA-256 of the bytes in it
    LOCATION/writing/           what is being written; its name says who writes it
    LOCATION/removing/          what is being removed

A value gets its name by one step, after its last byte is on the disk: whoever finds a file under such a name finds all
of it. A value stored again replaces its own file, which makes that young again, and heals it. Any `fsspec` address
will do as a location. Knows nothing of who refers to a file: see `retention`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard

from resource_guard.errors import ResultLost, StorageFull
from resource_guard.large_values import Reference

# On JSON of records and of numbers level 3 takes two to three times the CPU (320 MB/s against 650, 120 against 320),
# and its files are a tenth larger.
_LEVEL = 1
_READ_BYTES = 1 << 20
#: A file being written that has not grown for so long is nobody's, wherever its writer is, or was.
_ABANDONED_S = 3600.0
#: One that has not for so long is nobody's if its writer was a process of this machine that has ended.
_LEFT_S = 10.0
_BLOCK_BYTES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """A value's file."""

    digest: str
    #: What it takes where it is: its size, compressed, in whole blocks.
    stored_bytes: int
    #: When its value was last stored, in seconds since 1970.
    written_at: float


class Storage:
    """The values kept at one location. Safe to use from any number of threads, processes and machines at once."""

    def __init__(self, location: str) -> None:
        """A folder's path or an address that `fsspec` knows; nothing is made there yet."""
        # Here: whoever keeps no large values does without, which is most of the time.
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem

        if location.startswith("/"):  # `fsspec` would look for more in it: `::` joins its addresses
            self._files, self._root = LocalFileSystem(), location
        else:
            self._files, self._root = url_to_fs(location)
        self._local = isinstance(self._files, LocalFileSystem)

    def put(self, chunks: Iterable[bytes]) -> Reference:
        """Store a value that comes in chunks.

        Raises:
            StorageFull: there is no room for it; nothing is left behind.
            OSError: it can't be stored; nothing is left behind.
        """
        name = f"{socket.gethostname()}~{os.getpid()}~{secrets.token_hex(8)}"
        unfinished = f"{self._root}/writing/{name}"
        try:
            self._make_folder("writing")
            with self._files.open(unfinished, "wb") as file:
                reference = _compress(chunks, file)
                if self._local:
                    # The broker may keep the reference over a power failure. And a quota, or a disk at the other end
                    # of a network, may say only here that there is no room.
                    file.flush()
                    os.fsync(file.fileno())
            self._make_folder(reference.digest[:2])
            self._move(unfinished, self.path(reference.digest))
        except BaseException as error:
            with contextlib.suppress(OSError):
                self._files.rm_file(unfinished)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(self._root, error.strerror or "no space left") from error
            raise
        return reference

    def read(self, reference: Reference, of: str) -> bytearray:
        """A value's bytes, checked against the digest; `of` says whose value it is.

        Raises:
            ResultLost: its file is missing or broken.
        """
        path = self.path(reference.digest)
        try:
            with self._files.open(path, "rb") as file:
                value = _decompress(file, reference.size_bytes)
        except FileNotFoundError:
            raise ResultLost(of, path, "is not there") from None
        except (OSError, zstandard.ZstdError) as error:
            raise ResultLost(of, path, f"can't be read ({error})") from error
        if value is None or hashlib.sha256(value).hexdigest() != reference.digest:
            raise ResultLost(of, path, "is broken: what is in it is not what was stored")
        return value

    def path(self, digest: str) -> str:
        """Where the value with this digest is, or would be."""
        return f"{self._root}/{digest[:2]}/{digest}.zst"

    def has(self, reference: Reference) -> bool:
        """Whether a value's file is there; not whether it is whole."""
        return bool(self._files.exists(self.path(reference.digest)))

    def files(self) -> list[StoredFile]:
        """The files of all values, in no order."""
        found = []
        for path, facts in self._listed("").items():
            folder, _, name = path.removeprefix(f"{self._root}/").partition("/")
            if name.startswith(folder) and name.endswith(".zst"):
                stored_bytes = -(-facts["size"] // _BLOCK_BYTES) * _BLOCK_BYTES
                written_at = self._written_at(path, facts)
                found.append(StoredFile(digest=name[:-4], stored_bytes=stored_bytes, written_at=written_at))
        return found

    def remove(self, file: StoredFile) -> bool:
        """Remove a value's file, unless it has been stored again since it was listed; whether it is gone by us.

        On this machine's disks there is no moment at which a value just stored could be removed: its file is taken
        aside first, and looked at once more.
        """
        path = self.path(file.digest)
        try:
            aside = self._taken_aside(path, file.digest) if self._local else path
            if self._written_at(aside, self._files.info(aside)) > file.written_at:
                if self._local:
                    self._put_back(aside)
                return False
            self._files.rm_file(aside)
        except FileNotFoundError:  # somebody else has done it
            return False
        return True

    def clear(self, now: float) -> int:
        """Remove what writers that are gone have left unfinished, undo what removers have left so; how many that were.

        `now` is in seconds since 1970.
        """
        left = 0
        for path, facts in self._listed("writing").items():
            age_s = now - self._written_at(path, facts)
            if age_s > _ABANDONED_S or (age_s > _LEFT_S and _writer_has_ended(path)):
                left += self._remove_left(path)
        for path in self._listed("removing"):
            with contextlib.suppress(FileNotFoundError):  # it was not left: its remover is at it
                self._put_back(path)
                left += 1
        return left

    def _taken_aside(self, path: str, digest: str) -> str:
        self._make_folder("removing")
        aside = f"{self._root}/removing/{digest}.zst"
        self._move(path, aside)
        return aside

    def _put_back(self, aside: str) -> None:
        """Undo it, unless the value has been stored again meanwhile."""
        with contextlib.suppress(FileExistsError):
            Path(self.path(Path(aside).stem)).hardlink_to(aside)
        self._files.rm_file(aside)

    def _remove_left(self, path: str) -> int:
        try:
            self._files.rm_file(path)
        except FileNotFoundError:
            return 0
        return 1

    def _make_folder(self, name: str) -> None:
        if self._local:  # what tasks return is nobody else's business
            Path(self._root).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._files.makedirs(f"{self._root}/{name}", exist_ok=True)

    def _move(self, source: str, target: str) -> None:
        if self._local:
            Path(source).replace(target)  # fsspec's own would copy where it can't rename
        else:
            self._files.mv(source, target)

    def _listed(self, folder: str) -> dict[str, dict[str, Any]]:
        self._files.invalidate_cache()
        listed: dict[str, dict[str, Any]] = self._files.find(f"{self._root}/{folder}".rstrip("/"), detail=True)
        return listed

    def _written_at(self, path: str, facts: dict[str, Any]) -> float:
        return float(facts["mtime"] if "mtime" in facts else self._files.modified(path).timestamp())


def _compress(chunks: Iterable[bytes], file: IO[bytes]) -> Reference:
    digest, size_bytes = hashlib.sha256(), 0
    with zstandard.ZstdCompressor(level=_LEVEL).stream_writer(file, closefd=False) as compressed:
        for chunk in chunks:
            digest.update(chunk)
            size_bytes += len(chunk)
            compressed.write(chunk)
    return Reference(digest=digest.hexdigest(), size_bytes=size_bytes)


def _decompress(file: IO[bytes], size_bytes: int) -> bytearray | None:
    """What is in a file, in memory taken once; None if it is not of this size."""
    value, filled = bytearray(size_bytes), 0
    with memoryview(value) as room, zstandard.ZstdDecompressor().stream_reader(file, closefd=False) as reader:
        while filled < size_bytes and (count := reader.readinto(room[filled : filled + _READ_BYTES])):
            filled += count
        more = reader.read(1)
    return value if filled == size_bytes and not more else None


def _writer_has_ended(path: str) -> bool:
    """Whether a file being written is of a process of this machine that is there no more."""
    host, _, rest = path.rsplit("/", 1)[-1].partition("~")
    pid = rest.partition("~")[0]
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False
    return False
