"""Slows tasks down by stopping their processes for a part of each tenth of a second: for where there is no quota.

Only processes that run a task are stopped: a message that has been handed to a stopped one waits with it. Whoever is
stopped is continued whatever happens: at the end of its pause, when this thread fails, and, if this whole process is
killed, by a small one that waits for that (`continuer.py`).
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from resource_guard.cpu_share import smoothed
from resource_guard.held_tree import HeldTree

logger = logging.getLogger(__name__)

PERIOD_S = 0.1
#: A task goes on for this part of the time at least.
LEAST_FRACTION = 0.05
#: So often the processes that tasks have started are looked for.
LOOK_EVERY_S = 0.5
#: What the processes would use is known from about so long ago.
DEMAND_S = 0.5

_CONTINUER_ENDS_WITHIN_S = 1.0
_CONTINUER = Path(__file__).with_name("continuer.py")


class DutyCycle:
    """`busy` says which of the pool's processes run a task; it is asked before each pause, from another thread."""

    name = "stop and continue"

    def __init__(self, busy: Callable[[], Collection[int]], *, period_s: float = PERIOD_S) -> None:
        self._busy = busy
        self._period_s = period_s
        #: The part of the time that tasks run.
        self.fraction = 1.0
        # What was used lately, in which part of the time, and when that was told.
        self._lately: tuple[float, float, float] | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._has_failed = False
        # The rest is changed by that thread as well, under the lock.
        self._lock = threading.Lock()
        self._trees: dict[int, HeldTree] = {}
        self._looked_at: dict[int, float] = {}
        self._let_go: set[int] = set()
        self._stopped_s: dict[int, float] = {}
        self._stopped_at: dict[int, float] = {}
        self._continuer = _Continuer()

    def hold(self, at: float, cores: float, used_cores: float, children: Collection[int]) -> None:
        """Let busy children run for so much of the time that `children`, all there are, use `cores` together.

        `used_cores` is what they have used since the last call.
        """
        used_fraction = self.fraction
        if self._lately:
            before_cores, before_fraction, before_at = self._lately
            used_cores = smoothed(before_cores, used_cores, at - before_at, DEMAND_S)
            used_fraction = smoothed(before_fraction, used_fraction, at - before_at, DEMAND_S)
        self._lately = used_cores, used_fraction, at
        self.run_for(fraction_for(cores, used_cores, used_fraction))
        with self._lock:
            for pid in self._stopped_s.keys() - set(children):
                del self._stopped_s[pid]

    def run_for(self, fraction: float) -> None:
        """Let busy children run for `fraction` of the time, whatever they use."""
        self.fraction = fraction
        if fraction < 1 and (self._thread is None or not self._thread.is_alive()):
            self._closed.clear()
            self._thread = threading.Thread(target=self._run, name="cpu-duty-cycle", daemon=True)
            self._thread.start()

    def let_go(self, pid: int) -> None:
        """Continue this child now, and do not stop it again while it is busy."""
        with self._lock:
            self._let_go.add(pid)
            self._looked_at.pop(pid, None)
            if tree := self._trees.pop(pid, None):
                self._continue(pid, tree)
                tree.close()

    def stopped_s(self, pid: int) -> float:
        """How long a child has been stopped so far; for one that has ended, nothing."""
        with self._lock:
            stopped_at = self._stopped_at.get(pid)
            now_s = 0.0 if stopped_at is None else time.monotonic() - stopped_at
            return self._stopped_s.get(pid, 0.0) + now_s

    def close(self) -> None:
        """Continue all, and stop nobody any more."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        self._thread, self._lately, self.fraction = None, None, 1.0

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                began = time.monotonic()
                if (fraction := self.fraction) < 1:
                    self._closed.wait(self._period_s * fraction)
                    self._stop_all()
                self._closed.wait(max(0.0, began + self._period_s - time.monotonic()))
                self._continue_all()
        except Exception:
            if not self._has_failed:
                logger.exception("stopping and continuing tasks failed, and is tried again (said once)")
            self._has_failed = True
        finally:
            self._continue_all()
            self._forget_all()
            self._continuer.close()

    def _stop_all(self) -> None:
        busy = set(self._busy())
        with self._lock:
            self._let_go &= busy
            for pid in self._trees.keys() - busy:
                self._trees.pop(pid).close()
                del self._looked_at[pid]
            come = [self._look(pid) for pid in busy - self._let_go]
            if any(come) or not self._continuer.runs:
                self._continuer.watch([pid for tree in self._trees.values() for pid in tree.pids])
            for pid, tree in self._trees.items():
                self._stopped_at[pid] = time.monotonic()
                tree.send(signal.SIGSTOP)

    def _look(self, pid: int) -> bool:
        tree, now = self._trees.setdefault(pid, HeldTree(pid, parent_pid=os.getpid())), time.monotonic()
        if now - self._looked_at.get(pid, -LOOK_EVERY_S) < LOOK_EVERY_S:
            return False
        self._looked_at[pid] = now
        return tree.look()

    def _continue_all(self) -> None:
        with self._lock:
            for pid, tree in self._trees.items():
                self._continue(pid, tree)

    def _continue(self, pid: int, tree: HeldTree) -> None:
        tree.send(signal.SIGCONT)
        if (stopped_at := self._stopped_at.pop(pid, None)) is not None:
            self._stopped_s[pid] = self._stopped_s.get(pid, 0.0) + time.monotonic() - stopped_at

    def _forget_all(self) -> None:
        with self._lock:
            for tree in self._trees.values():
                tree.close()
            self._trees.clear()
            self._looked_at.clear()


def fraction_for(cores: float, used_cores: float, used_fraction: float) -> float:
    """The part of the time to run for, to use `cores`, by processes that used `used_cores` in `used_fraction` of it."""
    if used_cores <= 0:
        return 1.0
    return min(1.0, max(LEAST_FRACTION, cores * used_fraction / used_cores))


class _Continuer:
    """The process that continues whoever is stopped when this one is killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def watch(self, pids: list[int]) -> None:
        """From now on these; the process is started if there is none, by the thread it is to outlive."""
        if not self.runs:
            self.close()
            command = [sys.executable, "-I", "-S", str(_CONTINUER), str(os.getpid())]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, bufsize=0
            )
            assert self._process.stdin
            # Whoever asks how long a process has been stopped would wait as well.
            os.set_blocking(self._process.stdin.fileno(), False)
        assert self._process
        assert self._process.stdin
        line = " ".join(map(str, pids)).encode() + b"\n"
        try:
            taken = self._process.stdin.write(line)
        except BrokenPipeError:
            taken = None
        if taken != len(line):  # it has ended, or does not read; another is started before the next pause
            self.close()

    def close(self) -> None:
        """End it; it continues whoever is left, which is nobody by now."""
        if self._process is None:
            return
        assert self._process.stdin
        self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(_CONTINUER_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
