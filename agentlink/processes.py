"""Ties between a process and those it starts, where the standard library has none.

Those that need Linux's `prctl` do nothing elsewhere and return False: callers then rely on process groups alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# <linux/prctl.h>
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

# Loaded here, not when called: between fork and exec there must be nothing left to import.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None

_forking = threading.RLock()
os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_forking.release)


def _prctl(option: int, argument: int) -> bool:
    return _libc is not None and bool(_libc.prctl(option, argument, 0, 0, 0) == 0)


def die_with_parent(parent_pid: int, signum: int = signal.SIGKILL) -> bool:
    """Have the kernel send `signum` to this process when its parent ends, however that happens.

    `parent_pid` is the parent as the caller knows it: if it has ended before this call, the signal is raised at once.
    """
    done = _prctl(_PR_SET_PDEATHSIG, signum)
    if done and os.getppid() != parent_pid:
        os.kill(os.getpid(), signum)
    return done


def adopt_orphans() -> bool:
    """Become the new parent of all descendants whose own parent ends, so that none can escape by a double fork."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


@contextmanager
def forks_wait() -> Iterator[None]:
    """Hold up forks of this process by other threads: to import something in a thread, say.

    A child that is forked meanwhile has the lock of the module that was being imported, and nobody who will release it.
    """
    with _forking:
        yield
