"""Where large arguments are kept, and where a task gets them from: one write and one read for many that share them."""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from kombu.utils.json import dumps, loads

from agentlink.settings import load
from resource_guard.errors import ArgumentLost, ResultLost
from resource_guard.large_values import Reference, json_chunks

# Up to so much of a value is in memory at once while it is found out whether it has been written.
_HASHED_FIRST_BYTES = 8_000_000
# A value written so lately, and no longer ago than this share of the time files are kept, is not written again: its
# file stays until the broker has been told who refers to it.
_LATELY_S = 60.0
_LATELY_FRACTION = 0.1
_LATELY_MAX = 1_000
#: So much of what was read is kept, as JSON: each task gets a value of its own, which it may change.
READ_KEPT_BYTES = 32_000_000
# Lists are looked through for references as deep as they were when they were stored.
_LISTS_DEEP = 3


class Files(Protocol):
    """What arguments are kept in."""

    def put(self, chunks: Any) -> Reference:
        """Store a value that comes in chunks."""

    def read(self, reference: Reference, of: str) -> bytearray:
        """A value's bytes."""

    def has(self, reference: Reference) -> bool:
        """Whether a value is there."""


class ArgumentStore:
    """The arguments this process has put into files, or read from them, lately."""

    def __init__(self, files: Files, clock: Callable[[], float] = time.monotonic) -> None:
        self._files, self._clock = files, clock
        self._lock = threading.Lock()
        self._written_at: OrderedDict[Reference, float] = OrderedDict()
        self._read: OrderedDict[str, bytearray] = OrderedDict()
        self._read_bytes = 0

    def put(self, value: Any) -> Reference:
        """Store a value, unless this process has done so lately.

        Raises:
            StorageFull, OSError: as of `Storage.put`.
        """
        chunks = json_chunks(value, dumps)
        first: list[bytes] = []
        size_bytes, digest = 0, hashlib.sha256()
        for chunk in chunks:
            first.append(chunk)
            digest.update(chunk)
            size_bytes += len(chunk)
            if size_bytes > _HASHED_FIRST_BYTES:
                break
        else:
            reference = Reference(digest=digest.hexdigest(), size_bytes=size_bytes)
            if self._is_there(reference):
                return reference
        begun_at = self._clock()
        reference = self._files.put(itertools.chain(first, chunks))
        with self._lock:
            self._written_at[reference] = begun_at
            self._written_at.move_to_end(reference)
            while len(self._written_at) > _LATELY_MAX:
                self._written_at.popitem(last=False)
        return reference

    def _is_there(self, reference: Reference) -> bool:
        lately_s = min(_LATELY_S, _LATELY_FRACTION * load().keep_results_s)
        with self._lock:
            written_at = self._written_at.get(reference)
        return written_at is not None and self._clock() - written_at < lately_s and self._files.has(reference)

    def read(self, task_id: str, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """A task's arguments, with the values that they refer to.

        Raises:
            ArgumentLost: a value's file is missing or broken.
        """
        values = [self._value(value, task_id, _LISTS_DEEP) for value in args]
        return values, {name: self._value(value, task_id, _LISTS_DEEP) for name, value in kwargs.items()}

    def _value(self, value: Any, task_id: str, deep: int) -> Any:
        if isinstance(value, Reference):
            value = loads(self._bytes(value, task_id))
        if type(value) is list and deep and any(type(one) in (Reference, list) for one in value):
            return [self._value(one, task_id, deep - 1) for one in value]
        return value

    def _bytes(self, reference: Reference, task_id: str) -> bytearray:
        with self._lock:
            if (known := self._read.get(reference.digest)) is not None:
                self._read.move_to_end(reference.digest)
                return known
        try:
            read = self._files.read(reference, task_id)
        except ResultLost as lost:
            raise ArgumentLost(task_id, lost.file, lost.reason) from None
        self._remember(reference.digest, read)
        return read

    def _remember(self, digest: str, read: bytearray) -> None:
        if len(read) > READ_KEPT_BYTES // 2:  # it would push all others out
            return
        with self._lock:
            if digest not in self._read:
                self._read[digest] = read
                self._read_bytes += len(read)
            while self._read_bytes > READ_KEPT_BYTES:
                _, oldest = self._read.popitem(last=False)
                self._read_bytes -= len(oldest)
