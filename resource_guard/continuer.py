"""Continues stopped processes when the process that stopped them is gone; a small process of its own.

`duty` starts it as `python -I -S continuer.py PARENT_PID`. Each line of its input is a list of process ids, in place of
the one before. When the input ends, or the thread that has started it, whoever is on the last list gets SIGCONT.
Without it, what a task of a killed worker had started would stay stopped for ever.

Only the standard library and `agentlink.processes`: it must start in milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import NoReturn


def main(parent_pid: int) -> None:
    """Wait for the end of the parent, and then continue whoever it has stopped."""
    unread = bytearray()
    held: dict[int, int] = {}

    def leave(*_: object) -> NoReturn:
        """Called by a signal while it is at work already, it does all of it again: the other call is not gone on with.

        The signal comes more than once, for each thread of the parent that takes this process over and ends.
        """
        os.set_blocking(0, False)
        with contextlib.suppress(BlockingIOError):
            read(unread, held)
        for fd in held.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(fd, signal.SIGCONT)
        os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, which is the worker's affair
    signal.signal(signal.SIGTERM, leave)
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120 - start-up time
    from agentlink.processes import die_with_parent

    # The end of the input is not enough: processes that the parent has forked since keep it open.
    die_with_parent(parent_pid, signal.SIGTERM)
    read(unread, held)
    leave()


def read(unread: bytearray, held: dict[int, int]) -> None:
    """Take one list after the other, to the end of the input."""
    while chunk := os.read(0, 65536):
        unread += chunk
        lists, _, rest = unread.rpartition(b"\n")
        unread[:] = rest
        if lists:
            hold(held, {int(pid) for pid in lists.rpartition(b"\n")[2].split()})


def hold(held: dict[int, int], pids: set[int]) -> None:
    """Keep a pidfd of each of `pids` while they run, so that no other process with the same number is signalled."""
    for pid in held.keys() - pids:
        os.close(held.pop(pid))
    for pid in pids - held.keys():
        with contextlib.suppress(OSError):
            held[pid] = os.pidfd_open(pid)


if __name__ == "__main__":
    main(int(sys.argv[1]))
