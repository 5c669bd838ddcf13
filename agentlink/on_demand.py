"""AgentLink for the time of a run: started if it is not up, stopped after the last of the runs that use it.

Every run holds a shared lock on one file. Who starts something writes its pid into that file; who ends and finds that
nobody else holds the lock stops what is written there, with the lock held alone, so that a run which begins meanwhile
waits and starts everything anew. Pids and not mere marks: what a person starts with `agentlink up` stays.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from agentlink import up
from agentlink.broker import server
from agentlink.settings import Settings


@dataclass
class Use:
    """One run's use of AgentLink."""

    settings: Settings
    lock_fd: int
    broker_was_running: bool
    #: Whether nothing runs any more that was started for this run or for others at the same time.
    stopped: bool = False

    def start(self) -> dict[str, Any]:
        """Have AgentLink up, or coming up; return what it says of itself.

        Raises:
            UpFailed: it did not come up.
        """
        state, started = up.start(self.settings, wait_for_worker=False)
        if started:
            self._write_down(state["pid"])
        return state

    def end(self, *, keep: bool) -> None:
        """Stop what was started for runs, unless another run uses it; `keep` leaves it running for good."""
        if not self.broker_was_running and (pid := server.holder(self.settings)):
            self._write_down(pid)
        # Given up before it is asked for alone: two runs that end together must not wait for, or see, each other.
        fcntl.flock(self.lock_fd, fcntl.LOCK_UN)
        try:
            fcntl.flock(self.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if keep:
                os.truncate(self.lock_fd, 0)
            return
        if not keep:
            self._stop()
        os.truncate(self.lock_fd, 0)

    def _stop(self) -> None:
        written = os.pread(self.lock_fd, os.fstat(self.lock_fd).st_size, 0).decode().split()
        state = up.read_state(self.settings)
        if state and str(state["pid"]) in written:
            self.stopped = up.stop(self.settings)
        if str(server.holder(self.settings)) in written and not up.read_state(self.settings):
            self.stopped |= server.stop(self.settings)

    def _write_down(self, pid: int) -> None:
        os.write(self.lock_fd, f"{pid}\n".encode())


@contextmanager
def use(settings: Settings, *, keep: bool) -> Iterator[Use]:
    """AgentLink as the runs of this home share it. Starts nothing by itself."""
    server.make_folder(settings.home)
    lock_fd = os.open(settings.home / "runs.lock", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_SH)
        used = Use(settings, lock_fd, broker_was_running=not settings.embedded or server.is_running(settings))
        try:
            yield used
        finally:
            used.end(keep=keep)
    finally:
        os.close(lock_fd)
