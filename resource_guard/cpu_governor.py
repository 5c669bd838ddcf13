"""Holds the CPU time of everything AgentLink runs at what is allowed, by slowing down the tasks that use it.

`cpu_share` says how much the pool's processes may use from one look to the next. They are held at that by a quota of
the kernel's where one can be had (`cpu_quota`), and else by stopping and continuing those that are busy (`duty`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from resource_guard.cpu_quota import CpuQuota
from resource_guard.cpu_share import CREDIT_S, TARGET_FRACTION, CoresUsed, CpuState, allot, without_debt
from resource_guard.duty import DutyCycle

logger = logging.getLogger(__name__)

#: CPU time is told in hundredths of a second: what was used in less than a few of them is not known.
LEAST_TICK_S = 0.05
#: Who has so much credit, nearly all there is, uses less than is allowed.
EASY_CREDIT_S = 0.9 * CREDIT_S * TARGET_FRACTION


class CpuGovernor:
    """Holds the tree at `allowed_cores()`, which is infinite where all of the machine may be used.

    `busy` says which of the pool's processes run a task; it may be asked from a thread of the governor's own.

    `tick` and `stop` are for one thread, the rest for any. After `stop` the next tick begins anew.
    """

    def __init__(
        self,
        allowed_cores: Callable[[], float],
        busy: Callable[[], Collection[int]],
        open_quota: Callable[[], CpuQuota | None] = CpuQuota.open,
    ) -> None:
        self._allowed_cores = allowed_cores
        self._open_quota = open_quota
        self._has_begun = False
        self._quota: CpuQuota | None = None
        self._duty = DutyCycle(busy)
        self._state = CpuState()
        self._before: _CpuTimes | None = None
        #: What the pool's processes may use now.
        self.cores = math.inf

    @property
    def means(self) -> str:
        """What they are held by."""
        return CpuQuota.name if self._quota else DutyCycle.name

    @property
    def running_fraction(self) -> float:
        """The part of the time that busy processes run; 1.0 where a quota holds them."""
        return self._duty.fraction

    @property
    def is_easy(self) -> bool:
        """Whether less is used than is allowed, for a while by now."""
        return not self._has_begun or self._state.debt_core_s <= -EASY_CREDIT_S * self._allowed_cores()

    def tick(self, at: float, children_cpu_s: Mapping[int, float], others_cpu_s: float) -> None:
        """Take what the pool's processes of now, with their descendants, have used so far, and what all others have.

        What counts is what they have used since the tick before. `at` is monotonic, in seconds.
        """
        if math.isinf(self._allowed_cores()):
            # A group of their own would cost processes that nobody holds time at each hand-over.
            if self._has_begun:
                self.stop()
            return
        if self._before is not None and at - self._before.at < LEAST_TICK_S:
            return
        if not self._has_begun:
            self._has_begun, self._quota = True, self._open_quota()
        now = _CpuTimes(at=at, children_s=dict(children_cpu_s), others_s=others_cpu_s)
        use = now.since(self._before) if self._before else CoresUsed(tree_cores=0.0, children_cores=0.0)
        self._before = now
        self._state, self.cores = allot(self._state, self._allowed_cores(), at, use)
        self._hold(at, use.children_cores, children_cpu_s.keys())

    def let_go(self, pid: int) -> None:
        """Let a child that is to be ended or replaced run, so that it can. For the thread that ticks."""
        if self._quota:
            self._quota.let_go(pid, without_debt(self._state, self._allowed_cores()))
        self._duty.let_go(pid)

    def stopped_s(self, pid: int) -> float:
        """How long a child has been stopped so far; that is not part of its task's time."""
        return self._duty.stopped_s(pid)

    def stop(self) -> None:
        """Hold nobody any more."""
        if self._quota:
            self._quota.close()
        self._duty.close()
        self._has_begun, self._quota = False, None
        self._state, self._before, self.cores = CpuState(), None, math.inf

    def _hold(self, at: float, used_cores: float, children: Collection[int]) -> None:
        if self._quota:
            try:
                self._quota.hold(at, self.cores, children)
                return
            except OSError as error:
                logger.warning("CPU is no longer held by a %s: %s", CpuQuota.name, error)
                self._quota.close()
                self._quota = None
        self._duty.hold(at, self.cores, used_cores, children)


@dataclass(frozen=True, kw_only=True, slots=True)
class _CpuTimes:
    """CPU time used so far, in seconds."""

    at: float
    children_s: dict[int, float]
    others_s: float

    def since(self, before: _CpuTimes) -> CoresUsed:
        # A new process has used nothing before. The last bit of one that has ended is not known.
        used_s = sum(max(0.0, cpu_s - before.children_s.get(pid, 0.0)) for pid, cpu_s in self.children_s.items())
        others_s = max(0.0, self.others_s - before.others_s)
        passed_s = self.at - before.at
        return CoresUsed(tree_cores=(used_s + others_s) / passed_s, children_cores=used_s / passed_s)
