"""Ending a task's processes: asked first, then killed, and waited for until the last one has gone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from resource_guard.held_tree import HeldTree

#: The kernel frees the memory of a killed process before it counts as ended; 0.1 s for each GB were seen.
GONE_WITHIN_S = 5.0
# A stopped process starts no others, so each pass but the last finds what was started during the one before.
_PASSES = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeEnded:
    """What became of a tree."""

    #: All that were found, whatever became of them.
    pids: tuple[int, ...]
    #: Those that did not end when asked.
    killed: tuple[int, ...]
    #: Those that could not be killed: of another user, or held up in the kernel.
    left: tuple[int, ...]
    #: It was no longer necessary; `asked` says whether the processes had been asked to end by then.
    spared: bool
    asked: bool
    took_s: float


class TreeEnding:
    """The end of `pid` and all its descendants, a step at a time, so that whoever watches the machine is never held up.

    Call `step` often until it returns something; where there is no grace, and several are to end, `freeze` each of them
    before that. First every process gets SIGTERM, and SIGCONT, since a stopped one
    would not notice; a pool process ends as soon as it runs Python code, which code in C can put off for ever. After
    `grace_s` those that are left are killed; 0 kills at once. `still_needed` is asked before the one and before the
    other. A process that is no child of this one is left alone, and counts as ended.
    """

    def __init__(self, pid: int, *, grace_s: float, still_needed: Callable[[], bool] = lambda: True) -> None:
        self.pid = pid
        self._grace_s = grace_s
        self._still_needed = still_needed
        self._tree = HeldTree(pid, parent_pid=os.getpid())
        self._began_at: float | None = None
        self._frozen = self._asked = False
        self._killed_at: float | None = None
        self._found: dict[int, None] = {}
        self._killed: dict[int, None] = {}

    def freeze(self) -> None:
        """Stop it, and its process group if it leads one, at once: to find all that it has started takes longer."""
        self._frozen = True
        self._tree.send_to_group(signal.SIGSTOP)

    def step(self, now: float) -> TreeEnded | None:
        """Do what is due, which takes some milliseconds; what became of the tree, once nothing more is due.

        `now` is monotonic, in seconds.
        """
        if self._began_at is None:
            self._began_at = now
            if not self._still_needed():
                if self._frozen:
                    self._tree.send_to_group(signal.SIGCONT)
                return self._result(now, spared=True)
            self._look()
            if self._grace_s > 0:
                self._ask()
            else:
                self._kill(now)
            return None
        self._look()
        if not self._tree.pids:
            return self._result(now)
        if self._killed_at is not None:
            self._kill(self._killed_at)  # what was being started as the others were killed
            return self._result(now) if now - self._killed_at >= GONE_WITHIN_S else None
        if now - self._began_at < self._grace_s:
            return None
        if not self._still_needed():
            return self._result(now, spared=True)
        self._kill(now)
        return None

    def _look(self) -> bool:
        come = self._tree.look(strays=True)
        self._found |= dict.fromkeys(self._tree.pids)
        return come

    def _ask(self) -> None:
        self._asked = True
        self._tree.send(signal.SIGTERM)
        self._tree.send(signal.SIGCONT)

    def _kill(self, now: float) -> None:
        for _ in range(_PASSES):
            self._tree.send(signal.SIGSTOP)
            if not self._look():
                break
        self._killed |= dict.fromkeys(self._tree.pids)
        self._tree.send(signal.SIGKILL)
        self._killed_at = now

    def _result(self, now: float, *, spared: bool = False) -> TreeEnded:
        left = () if spared else self._tree.pids
        self._tree.close()
        return TreeEnded(
            pids=tuple(self._found),
            killed=tuple(pid for pid in self._killed if pid not in left),
            left=left,
            spared=spared,
            asked=self._asked,
            took_s=now - (now if self._began_at is None else self._began_at),
        )
