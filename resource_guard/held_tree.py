"""A process and all that descend from it, held so that a signal never reaches another process with the same number.

A number is free again as soon as its process has been waited for; a pidfd stays with its process. Where the kernel has
none, psutil compares the time of the start before it signals.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import psutil

_CHILDREN_LISTED = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists()


class Member(Protocol):
    """One process."""

    pid: int

    def send(self, signum: int) -> None:
        """Signal it; nothing happens if it has ended, or belongs to another user."""

    def ended(self) -> bool:
        """Whether it runs no more; a zombie does not."""

    def close(self) -> None:
        """Let go of it."""


class HeldTree:
    """`root_pid` and its descendants, as of the last `look`. To be used from one thread at a time, and closed.

    It is empty if the root is no child of `parent_pid`, or has ended before the first look.
    """

    def __init__(self, root_pid: int, *, parent_pid: int | None = None) -> None:
        self._root_pid, self._parent_pid = root_pid, parent_pid
        self._members: dict[int, Member] = {}
        self._led: set[int] = set()
        self._has_begun = False

    @property
    def pids(self) -> tuple[int, ...]:
        """Those that ran at the last look, parents before their children."""
        return tuple(self._members)

    def look(self, *, strays: bool = False) -> bool:
        """Find those that have come and forget those that have ended; whether any has come.

        `strays` finds also those that were adopted by another process, because their parent ended, if their process
        group or session was led by one of the tree. It looks at every process of the machine.
        """
        for pid in [pid for pid, member in self._members.items() if member.ended()]:
            self._members.pop(pid).close()
        before = len(self._members)
        self._take_root()
        if strays:
            pids = psutil.pids()
            # No new process gets a number that a group or session still has: who runs under one that led leads another.
            self._led -= {pid for pid in self._led.intersection(pids) if pid not in self._members and _runs(pid)}
            for pid in pids:
                self._take(pid, self._was_led)
        pending = list(self._members)
        while pending:
            parent_pid = pending.pop(0)
            pending += [pid for pid in _children(parent_pid) if self._take(pid, partial(_is_child, parent_pid))]
        return len(self._members) > before

    def send(self, signum: int) -> None:
        """Signal all of them, parents before their children, but when they are to go on.

        So a parent that watches its children, as a shell does, never sees one of them stopped, nor one of them end
        before it has been asked to end itself.
        """
        members = list(self._members.values())
        for member in reversed(members) if signum == signal.SIGCONT else members:
            member.send(signum)

    def send_to_group(self, signum: int) -> None:
        """Signal the root and, if it leads a process group, all that are in that."""
        self._take_root()
        root = self._members.get(self._root_pid)
        if root is not None and not root.ended():
            root.send(signum)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._root_pid, signum)

    def close(self) -> None:
        """Forget all of them."""
        for member in self._members.values():
            member.close()
        self._members.clear()
        self._led.clear()

    def _take_root(self) -> None:
        if not self._has_begun:  # once: its number may be another's later
            self._has_begun = True
            self._take(self._root_pid, lambda line: self._parent_pid in (None, line.parent_pid))

    def _take(self, pid: int, belongs: Callable[[_Lineage], bool]) -> bool:
        if pid in self._members or pid == os.getpid() or not _belongs(pid, belongs):
            return False
        if (member := _open(pid)) is None:
            return False
        # It may have been another's number before it was held; from now on it is not.
        if member.ended() or not _belongs(pid, belongs):
            member.close()
            return False
        self._members[pid] = member
        self._led.add(pid)
        return True

    def _was_led(self, line: _Lineage) -> bool:
        return line.group in self._led or line.session in self._led


class _Lineage(NamedTuple):
    parent_pid: int
    group: int
    session: int


def _is_child(parent_pid: int, line: _Lineage) -> bool:
    return line.parent_pid == parent_pid


def _belongs(pid: int, belongs: Callable[[_Lineage], bool]) -> bool:
    line = _lineage(pid)
    return line is not None and belongs(line)


def _lineage(pid: int) -> _Lineage | None:
    try:
        # The name, in brackets, may contain anything.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return _Lineage(int(fields[1]), int(fields[2]), int(fields[3]))
    except (OSError, IndexError):
        pass
    with contextlib.suppress(psutil.Error, OSError):
        return _Lineage(psutil.Process(pid).ppid(), os.getpgid(pid), os.getsid(pid))
    return None


def _runs(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def _children(pid: int) -> list[int]:
    children: list[int] = []
    if not _CHILDREN_LISTED:
        with contextlib.suppress(psutil.Error):
            children = [child.pid for child in psutil.Process(pid).children()]
        return children
    # Each thread lists those that it has started itself.
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - many times a second, and six times faster
            with open(f"/proc/{pid}/task/{task}/children", "rb", buffering=0) as file:  # noqa: PTH123 - as above
                children += map(int, file.read().split())
    return children


def _open(pid: int) -> Member | None:
    try:
        return _ByDescriptor(pid)
    except ProcessLookupError:
        return None
    except (AttributeError, OSError):  # none here: not Linux, before 5.3, or forbidden in a container
        pass
    try:
        return _ByStartTime(pid)
    except psutil.Error:
        return None


class _ByDescriptor:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def send(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._fd, signum)

    def ended(self) -> bool:
        return bool(self._poll.poll(0))

    def close(self) -> None:
        os.close(self._fd)


class _ByStartTime:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._process = psutil.Process(pid)

    def send(self, signum: int) -> None:
        with contextlib.suppress(psutil.Error):
            self._process.send_signal(signum)

    def ended(self) -> bool:
        try:
            return not self._process.is_running() or self._process.status() == psutil.STATUS_ZOMBIE
        except psutil.Error:
            return True

    def close(self) -> None:
        """Nothing is held."""
