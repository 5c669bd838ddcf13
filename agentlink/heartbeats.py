"""The heartbeat files of the workers on this host: each says who writes it, and its age tells that the worker lives.

A file is written when the worker's state changes, and only touched in between: that needs no room on a full disk. It
goes with its worker; one that is killed leaves it. Nothing here imports more than it must: `agentlink health` is
asked every few seconds.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Literal, NamedTuple

#: A worker's main loop turns at least this often.
BEAT_S = 2.0
#: One that has not turned for so long is dead.
STALE_S = 30.0

#: `waiting`: for a broker that is away. `stopping`: its running tasks end, and its main loop waits for them.
State = Literal["starting", "ready", "waiting", "stopping"]
IN_WORDS: dict[State, str] = {
    "starting": "starts",
    "ready": "takes tasks",
    "waiting": "waits for the broker",
    "stopping": "ends its tasks, then stops",
}


class Heartbeat(NamedTuple):
    """What a worker has said last, and when it was last heard of."""

    worker: str
    pid: int
    state: State
    #: Seconds since 1970.
    at: float

    @property
    def age_s(self) -> float:
        """How long it has not been heard of."""
        return max(0.0, time.time() - self.at)

    @property
    def has_process(self) -> bool:
        """Whether there is a process of its number."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


def say(home: Path, worker: str, state: State) -> None:
    """Write this process's file: it is that worker, in that state, and it has just been heard of."""
    path = _path(home, worker)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    written = path.with_suffix(".new")
    written.write_text(json.dumps({"worker": worker, "pid": os.getpid(), "host": _host(), "state": state}))
    written.replace(path)


def beat(home: Path, worker: str) -> None:
    """Say that this worker has just been heard of.

    Raises:
        FileNotFoundError: its file has been removed.
    """
    os.utime(_path(home, worker))


def end(home: Path, worker: str) -> None:
    """Say that this worker ends as it should."""
    _path(home, worker).unlink(missing_ok=True)


def of_this_host(home: Path) -> list[Heartbeat]:
    """Those of all workers that have started on this host and not ended as they should, by name."""
    found = [beat for beat, host in _all(home) if host == _host()]
    return sorted(found)


def of_process(home: Path, pid: int) -> Heartbeat | None:
    """That of the worker with this process on this host."""
    return next((beat for beat in of_this_host(home) if beat.pid == pid), None)


def forget_the_dead(home: Path) -> None:
    """Remove the files of workers on this host that were killed: nobody is to be told of them any more."""
    for heartbeat in of_this_host(home):
        if not heartbeat.has_process:
            end(home, heartbeat.worker)


class Watch:
    """Tells when a worker hangs, to whoever looks at it again and again.

    By this process's own clock: a machine that wakes up after hours finds only old heartbeats.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._seen: Heartbeat | None = None
        self._seen_at = 0.0

    def hangs(self, pid: int, now: float) -> bool:
        """Whether the worker with this process has not been heard of while it was looked at; `now` is monotonic."""
        heartbeat = of_process(self._home, pid)
        if heartbeat != self._seen:
            self._seen, self._seen_at = heartbeat, now
        silent_s = now - self._seen_at
        return heartbeat is not None and heartbeat.state != "stopping" and silent_s > STALE_S


def _all(home: Path) -> list[tuple[Heartbeat, str]]:
    found: list[tuple[Heartbeat, str]] = []
    for path in (home / "health").glob("*.json"):
        try:
            facts = json.loads(path.read_bytes())
            heartbeat = Heartbeat(facts["worker"], facts["pid"], facts["state"], path.stat().st_mtime)
            found.append((heartbeat, facts["host"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it has just ended, or somebody else has put that there
    return found


def _path(home: Path, worker: str) -> Path:
    # Hosts that share a home (containers, say) may have workers of one name.
    name = f"{worker}.{_host()}" if not worker.endswith(f"@{_host()}") else worker
    return home / "health" / f"{name.replace('/', '_')}.json"


def _host() -> str:
    return os.uname().nodename
