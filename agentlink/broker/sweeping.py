"""Results kept in files, and the folders of runs, go when their time is over.

Of all workers that share the files one sweeps at a time, and seldom: whose turn it is, a key in the broker tells.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import socket
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import redis

from agentlink.broker.arguments import RUNS_PREFIX
from agentlink.broker.sweep_step import Lookup
from agentlink.processes import forks_wait
from agentlink.settings import Settings
from agentlink.units import format_size
from resource_guard.retention import files_to_remove, folder_bytes, folders_to_remove
from resource_guard.storage import Storage, StoredFile

logger = logging.getLogger(__name__)

#: Whose turn it is to sweep some location.
TURN_PREFIX = "agentlink:sweep:"

# What is kept for days need not go on the second; what is kept for seconds should.
_SWEEPS_A_LIFE = 20
_EVERY_S = (1.0, 60.0)
#: A sweeper that has ended without a word holds the others up for so long.
_TURN_S = 600
_DIGESTS_AT_ONCE = 1_000
# Of the quota: room is made before all of it is used, and so much that a worker that has paused for it takes up again.
_FULL_FRACTION, _ROOM_AGAIN_FRACTION = 0.95, 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Swept:
    """What a sweep has removed."""

    #: Results that have had their time.
    expired: int = 0
    #: Results that went before it, to make room.
    crowded_out: int = 0
    #: What had been left by writers and removers that are gone.
    unfinished: int = 0
    #: Folders of runs.
    folders: int = 0
    #: The results' bytes.
    freed_bytes: int = 0


class Sweeper:
    """Removes what has had its time, at the places that the settings name."""

    def __init__(
        self, settings: Settings, client_of_thread: Callable[[], redis.Redis], lookups: Sequence[Lookup]
    ) -> None:
        """Ask nothing of the broker yet."""
        self._settings, self._client_of_thread, self._lookups = settings, client_of_thread, lookups
        if settings.storage or Path(settings.storage_location).exists():
            self._storage  # noqa: B018 - now, before there are processes: they share what is imported for it
        self.every_s = min(max(settings.keep_results_s / _SWEEPS_A_LIFE, _EVERY_S[0]), _EVERY_S[1])
        place = settings.storage_location if settings.storage else f"{socket.gethostname()}:{settings.home}"
        self._turn_key = TURN_PREFIX + hashlib.sha256(place.encode()).hexdigest()[:16]

    @cached_property
    def _storage(self) -> Storage:
        with forks_wait():
            return Storage(self._settings.storage_location)

    @cached_property
    def _client(self) -> redis.Redis:
        return self._client_of_thread()

    def sweep_in_turn(self) -> Swept | None:
        """Sweep, if nobody does or has lately."""
        if not self._client.set(self._turn_key, "", nx=True, ex=_TURN_S):
            return None
        try:
            swept = self.sweep(time.time())
        finally:
            self._client.pexpire(self._turn_key, int(self.every_s * 900))  # not quite: whoever comes next is due
        if swept != Swept():
            logger.info("swept %s", " ".join(f"{name}={number}" for name, number in asdict(swept).items()))
        return swept

    def sweep(self, now: float) -> Swept:
        """Remove what has had its time; `now` is in seconds since 1970."""
        if not self._settings.storage and not Path(self._settings.storage_location).exists():
            return Swept(folders=self._remove_folders(now))  # no large result was ever kept
        unfinished = self._storage.clear(now)
        files = self._storage.files()
        expired, crowded_out = files_to_remove(
            files,
            self._held,
            now=now,
            keep_s=self._settings.keep_results_s,
            excess_bytes=self._excess_bytes(files),
        )
        removed = [file for file in expired if self._storage.remove(file)]
        crowded = [file for file in crowded_out if self._storage.remove(file)]
        if crowded:
            logger.warning(
                "disk_quota (%s) is used up: %d results went before their time, the oldest of %s",
                format_size(self._settings.disk_quota_bytes), len(crowded), time.ctime(crowded[0].written_at),
            )  # fmt: skip
        return Swept(
            expired=len(removed),
            crowded_out=len(crowded),
            unfinished=unfinished,
            folders=self._remove_folders(now),
            freed_bytes=sum(file.stored_bytes for file in removed + crowded),
        )

    def _excess_bytes(self, files: Sequence[StoredFile]) -> int:
        used_bytes, quota_bytes = self._used_bytes(files), self._settings.disk_quota_bytes
        if used_bytes <= _FULL_FRACTION * quota_bytes:
            return 0
        return int(used_bytes - _ROOM_AGAIN_FRACTION * quota_bytes)

    def _used_bytes(self, files: Sequence[StoredFile]) -> int:
        """What counts for the quota: all below the home; results kept elsewhere count by themselves."""
        if self._settings.storage is None:
            return folder_bytes(self._settings.home)
        return sum(file.stored_bytes for file in files)

    def _held(self, digests: Sequence[str]) -> Collection[str]:
        """Those that belong to runs that go on."""
        held: set[str] = set()
        for start in range(0, len(digests), _DIGESTS_AT_ONCE):
            part = digests[start : start + _DIGESTS_AT_ONCE]
            with self._client.pipeline(transaction=False) as pipe:
                for digest in part:
                    pipe.smembers(RUNS_PREFIX + digest)
                runs_of = dict(zip(part, pipe.execute(), strict=True))
            going_on = {run_id for run_id, goes_on in self._runs(set().union(*runs_of.values())).items() if goes_on}
            held |= {digest for digest, runs in runs_of.items() if going_on & {_text(run_id) for run_id in runs}}
        with self._client.pipeline(transaction=False) as pipe:
            for digest in held:  # they outlive what was promised to them when they were stored
                pipe.expire(RUNS_PREFIX + digest, int(2 * self._settings.keep_results_s))
            pipe.execute()
        return held

    def _runs(self, run_ids: Collection[str | bytes]) -> dict[str, bool]:
        known: dict[str, bool] = {}
        for lookup in self._lookups:
            for run_id, goes_on in lookup(self._client, [_text(run_id) for run_id in run_ids]).items():
                known[run_id] = known.get(run_id, False) or goes_on
        return known

    def _remove_folders(self, now: float) -> int:
        keep_s, runs = self._settings.keep_results_s, self._settings.runs_folder
        folders = folders_to_remove(runs, self._runs, now=now, keep_s=keep_s)
        for folder in folders:
            _remove_tree(folder)
        return len(folders)


def _remove_tree(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        logger.info("%s is not removed: %s", folder, error)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
