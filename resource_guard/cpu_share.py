"""How much CPU tasks may use, so that everything AgentLink runs stays within what it is allowed. Plain sums."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Aimed at a little below the limit: what is measured lags behind what is used.
TARGET_FRACTION = 0.98
#: What was used beyond the target is saved up again within about so long: well within the 10 s of the mean.
REPAY_S = 2.0
#: Of what was not used, so long a time's worth may be used later. More would let a burst go over the limit.
CREDIT_S = 0.2
#: Of what was used too much, so long a time's worth is remembered: what is older has left the mean.
DEBT_S = 5.0
#: So slowly the estimate follows of what the main process, the broker and others take.
OUTSIDE_S = 1.0
#: Tasks always go on a little, also when others use up all that is allowed.
LEAST_CORES = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class CoresUsed:
    """Cores used, as the mean since the look before."""

    #: By everything this AgentLink runs.
    tree_cores: float
    #: Of that, by the pool's processes and what they have started.
    children_cores: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuState:
    """What `allot` remembers from one look to the next."""

    at: float | None = None
    #: Used beyond the target, in core-seconds; below 0, what may be used on top of it.
    debt_core_s: float = 0.0
    outside_cores: float = 0.0


def allot(state: CpuState, allowed_cores: float, at: float, use: CoresUsed) -> tuple[CpuState, float]:
    """The cores that the pool's processes may use until the next look, so that the tree uses `allowed_cores` at most.

    `at` is monotonic, in seconds.
    """
    passed_s = 0.0 if state.at is None else max(0.0, at - state.at)
    target_cores = allowed_cores * TARGET_FRACTION
    debt_core_s = state.debt_core_s + (use.tree_cores - target_cores) * passed_s
    debt_core_s = min(max(debt_core_s, -CREDIT_S * target_cores), DEBT_S * target_cores)
    outside_cores = max(0.0, use.tree_cores - use.children_cores)
    if state.at is not None:
        outside_cores = smoothed(state.outside_cores, outside_cores, passed_s, OUTSIDE_S)
    after = CpuState(at=at, debt_core_s=debt_core_s, outside_cores=outside_cores)
    return after, max(LEAST_CORES, without_debt(after, allowed_cores) - debt_core_s / REPAY_S)


def without_debt(state: CpuState, allowed_cores: float) -> float:
    """The cores that the pool's processes may use if nothing was used too much before."""
    return max(LEAST_CORES, allowed_cores * TARGET_FRACTION - state.outside_cores)


def smoothed(before: float, now: float, passed_s: float, within_s: float) -> float:
    """An average that forgets two thirds of what it was `within_s` ago."""
    return now + (before - now) * math.exp(-passed_s / within_s)
