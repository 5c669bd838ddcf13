"""Results too large for the broker: they are kept in files, and the broker keeps a small reference in their place.

The values that tasks return, and no other part of what is stored. Whoever reads a result (`get()`) gets the value; it
is read from its file when it is asked for, not with the task's state. What comes next (the next task of a chain, a
chord's body, also where a task came twice) is handed the reference, and reads the value as its argument: see
`arguments`.

A reference is told from a result that looks like one by what stands beside it, where no task's return value ever is:
`REFERENCE` in a task's result as the broker has it, a fifth part in what a chord's member leaves for the join. A plain
Celery client sees `{"agentlink_stored": SHA-256, "bytes": size}`.

Of Celery 5.7's `RedisBackend`, held by a contract test: `_get_result_meta`, `_unpack_chord_result` and what it unpacks,
`meta_from_decoded`, `encode`, `decode`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery.backends.redis import RedisBackend

from agentlink.broker.argument_store import ArgumentStore
from agentlink.broker.arguments import Seen, belong
from agentlink.broker.errors import ResultNotStored
from agentlink.settings import load
from resource_guard.errors import StorageError
from resource_guard.large_values import Reference, is_longer, json_chunks

if TYPE_CHECKING:  # what it imports takes 60 ms, and few callers ever read a large result
    from resource_guard.storage import Storage

#: Beside a task's result: that the result is a reference.
REFERENCE = "agentlink_reference"

#: On the request of a task whose body has ended: what has been stored since, by identity.
SEEN = "agentlink_seen"


class StoredMeta(dict[str, Any]):
    """A task's result as Celery knows it, whose value is read when it is first asked for."""

    def __init__(self, meta: dict[str, Any], reference: Reference, read: Callable[[Reference], Any]) -> None:
        super().__init__(meta)
        self.reference = reference
        self._read: Callable[[Reference], Any] | None = read

    def __getitem__(self, name: str) -> Any:
        """As of any dictionary.

        Raises:
            ResultLost: it is the value, and its file is missing or broken.
        """
        read = self._read
        if name == "result" and read is not None:
            value = read(self.reference)
            if value is self.reference:
                return value  # it is handed on
            self["result"], self._read = value, None
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As of any dictionary; see `__getitem__`."""
        return self[name] if name in self else default  # noqa: SIM401 - this is what it means here


class LargeResults(RedisBackend):
    """A Redis result store from which large results are kept away. The rest of it has `patiently`."""

    #: The result being stored, once it has been looked at: it is passed on several times.
    _small: Any = None
    #: Whether a chord is joined: its body is handed references.
    _joins = False

    @cached_property
    def storage(self) -> Storage:
        """Where large results are."""
        from resource_guard.storage import Storage

        return Storage(load().storage_location)

    @cached_property
    def arguments(self) -> ArgumentStore:
        """Where large arguments are: with the results."""
        return ArgumentStore(self.storage)

    def mark_as_done(
        self, task_id: str, result: Any, request: Any = None, store_result: bool = True, **kwargs: Any
    ) -> None:
        """Store a result once for all who are told of it: those who wait, and the chord the task is a member of."""
        if request is not None and (request.chord or (store_result and not request.ignore_result)):
            result = self._small = self.without_bulk(task_id, result, request)
        try:
            super().mark_as_done(task_id, result, request=request, store_result=store_result, **kwargs)
        finally:
            self._small = None
            if request is not None:
                vars(request).pop(SEEN, None)

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None, **kwargs: Any
    ) -> Any:
        """Store a task's state, and its result if that is what it has come to."""
        if state == "SUCCESS":
            result = self.without_bulk(task_id, result, request)
        return super().store_result(task_id, result, state, traceback=traceback, request=request, **kwargs)

    def on_chord_part_return(self, request: Any, state: str, result: Any, *args: Any, **kwargs: Any) -> None:
        """Count a member of a chord, whose join finds its result, or the reference to it."""
        if state == "SUCCESS" and request.group:
            result = self.without_bulk(request.id, result, request)
        self._joins = True
        try:
            super().on_chord_part_return(request, state, result, *args, **kwargs)
        finally:
            self._joins = False

    def without_bulk(self, task_id: str, result: Any, request: Any) -> Any:
        """The result itself, or a reference to the file it is in now, if it is too large for the broker.

        Raises:
            ResultNotStored: it can't be put into a file. Where that is for want of room, a task waits for a while.
        """
        if isinstance(result, Reference) or result is self._small:
            return result
        result = self.prepare_value(result)
        seen: Seen = getattr(request, SEEN, None) or {}
        kept = seen.get(id(result))
        if kept is not None and not kept.within:  # it was handed on, as an argument of what comes next
            self._claim(kept.reference, request)
            return kept.reference
        if not is_longer(result, load().results_inline_bytes, self._json):
            return result

        def put() -> Reference:
            return self.storage.put(json_chunks(result, self._json))

        try:
            reference: Reference = self.patiently(put)
        except (OSError, StorageError) as error:
            raise ResultNotStored(task_id, str(error)) from error
        self._claim(reference, request)
        return reference

    def _claim(self, reference: Reference, request: Any) -> None:
        """Before anybody can find the reference; and a file is young enough to be left alone until then."""
        if runs := _runs_of(request):
            self.patiently(self._run_all, belong([reference.digest], runs))

    def encode(self, data: Any) -> Any:
        """What the broker gets to keep; a reference among a chord's results is told by a fifth part."""
        if isinstance(data, list) and data and isinstance(data[-1], Reference):
            data = [*data[:-1], _shown(data[-1]), REFERENCE]
        return super().encode(data)

    def meta_from_decoded(self, meta: dict[str, Any]) -> dict[str, Any]:
        """A task's result as the broker has it, with its value where that is in a file."""
        if meta.pop(REFERENCE, None):
            task_id = meta["task_id"]
            return StoredMeta(
                meta, _reference(meta["result"]), lambda one: one if self._joins else self._value(one, task_id)
            )
        decoded: dict[str, Any] = super().meta_from_decoded(meta)
        return decoded

    def _get_result_meta(self, result: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        meta: dict[str, Any] = super()._get_result_meta(result, *args, **kwargs)
        return meta | {"result": _shown(result), REFERENCE: True} if isinstance(result, Reference) else meta

    def _unpack_chord_result(self, member: bytes, decode: Callable[[bytes], list[Any]], *args: Any) -> Any:
        _, _, _, result, *reference = parts = decode(member)
        if reference:
            return _reference(result)
        return super()._unpack_chord_result(member, lambda _: parts, *args)

    def _json(self, value: Any) -> str:
        text: str = self._encode(value)[2]
        return text

    def _value(self, reference: Reference, task_id: str) -> Any:
        return self.decode(self.storage.read(reference, task_id))


def passed_on(meta: dict[str, Any]) -> Any:
    """What is handed to whoever comes after a task: its result, or the reference to that."""
    return meta.reference if isinstance(meta, StoredMeta) else meta["result"]


def _reference(shown: dict[str, Any]) -> Reference:
    return Reference(digest=shown["agentlink_stored"], size_bytes=shown["bytes"])


def _shown(reference: Reference) -> dict[str, Any]:
    return {"agentlink_stored": reference.digest, "bytes": reference.size_bytes}


def _runs_of(request: Any) -> list[str]:
    """The run a task is a step of, and the one that this is a step of in turn, if any; a task alone has but its id."""
    ids = (getattr(request, "agentlink_run", None), getattr(request, "root_id", None))
    return sorted({run_id for run_id in ids if run_id})
