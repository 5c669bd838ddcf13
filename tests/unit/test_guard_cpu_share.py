"""How CPU is held at its limit: the sums."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resource_guard.cpu_governor import CpuGovernor
from resource_guard.cpu_quota import CpuQuota
from resource_guard.cpu_share import CoresUsed, CpuState, allot
from resource_guard.duty import fraction_for
from tests.unit.test_guard_cpu_governor import TICK_S

ALLOWED_CORES = 1.2


def mean_cores(trace: list[float], over_s: float = 10) -> list[float]:
    """The means over each window of so many seconds."""
    ticks = round(over_s / TICK_S)
    return [sum(trace[first : first + ticks]) / ticks for first in range(len(trace) - ticks + 1)]


def simulate(wanted: list[float], outside: list[float], late_ticks: int = 1, noise: float = 0.0) -> list[float]:
    """What a tree uses whose tasks want so many cores, tick by tick, if they are held `late_ticks` after each look."""
    chance = random.Random(1)
    state, granted, trace = CpuState(), [2.0] * late_ticks, []
    for tick, (wanted_cores, outside_cores) in enumerate(zip(wanted, outside, strict=True)):
        used = min(wanted_cores, granted[-late_ticks] * chance.uniform(1 - noise, 1 + noise))
        trace.append(used + outside_cores)
        use = CoresUsed(tree_cores=used + outside_cores, children_cores=used)
        state, cores = allot(state, ALLOWED_CORES, tick * TICK_S, use)
        granted.append(cores)
    return trace


@pytest.mark.parametrize(
    ("wanted", "outside"),
    [
        ([2.0] * 300, [0.0] * 300),
        ([2.0] * 300, [0.3] * 300),
        ([2.0] * 300, [0.05 + 0.25 * (tick // 20 % 2) for tick in range(300)]),
        ([2.0 * (tick // 30 % 2) for tick in range(300)], [0.05] * 300),
        ([0.0] * 100 + [2.0] * 200, [0.05] * 300),
    ],
    ids=["at once", "with others", "with others now and then", "in bursts", "after a rest"],
)
@pytest.mark.parametrize(("late_ticks", "noise"), [(1, 0.0), (5, 0.0), (2, 0.2)], ids=["exact", "late", "noisy"])
def test_the_mean_of_ten_seconds_stays_at_the_limit(
    wanted: list[float], outside: list[float], late_ticks: int, noise: float
) -> None:
    """60 % of two cores are allowed, and 63 % is too much: also when holding takes half a second to have its effect."""
    trace = simulate(wanted, outside, late_ticks, noise)
    assert max(mean_cores(trace)) <= 0.63 * 2


@pytest.mark.parametrize("late_ticks", [1, 5])
def test_what_is_allowed_is_used_while_there_is_work_for_it(late_ticks: int) -> None:
    trace = simulate([2.0] * 300, [0.1] * 300, late_ticks)
    assert min(mean_cores(trace)) >= 0.93 * ALLOWED_CORES


def test_who_wants_less_than_is_allowed_gets_it() -> None:
    assert simulate([1.0] * 100, [0.1] * 100) == pytest.approx([1.1] * 100)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 0.6), st.integers(1, 40)), min_size=1, max_size=30))
def test_whatever_tasks_and_others_want_the_limit_holds(phases: list[tuple[float, float, int]]) -> None:
    wanted = [cores for cores, _, ticks in phases for _ in range(ticks)]
    outside = [cores for _, cores, ticks in phases for _ in range(ticks)]
    trace = simulate(wanted, outside)
    assert max(mean_cores(trace), default=0.0) <= 0.63 * 2


def test_tasks_go_on_a_little_when_others_take_all_there_is() -> None:
    """And are at their full speed seconds after, not when all of it is made up for."""
    trace = simulate([2.0] * 600, [1.9] * 300 + [0.0] * 300)
    assert min(trace[:300]) > 1.9
    assert min(trace[300 + 120 :]) > 0.9 * ALLOWED_CORES


@pytest.mark.parametrize(
    ("cores", "used_cores", "used_fraction", "fraction"),
    [
        (1.2, 2.0, 1.0, 0.6),
        (1.2, 1.2, 0.6, 0.6),
        (1.2, 0.6, 0.6, 1.0),
        (1.2, 0.0, 0.6, 1.0),
        (0.0, 2.0, 1.0, 0.05),
    ],
    ids=["too fast", "as it should be", "slower than allowed", "idle", "never quite stopped"],
)
def test_the_part_of_the_time(cores: float, used_cores: float, used_fraction: float, fraction: float) -> None:
    assert fraction_for(cores, used_cores, used_fraction) == pytest.approx(fraction)


def test_a_quota_that_ceases_to_work_is_replaced_by_the_duty_cycle(tmp_path: Path) -> None:
    """Somebody has removed the group, or taken away the right to change it."""
    governor = CpuGovernor(lambda: ALLOWED_CORES, list, lambda: CpuQuota(tmp_path / "gone"))
    governor.tick(0.0, {}, 0.0)
    assert governor.means == "stop and continue"
    governor.stop()


def test_where_all_of_the_machine_is_allowed_nobody_is_held() -> None:
    """Not even at the 98 % that are aimed at otherwise."""
    governor = CpuGovernor(lambda: math.inf, list, lambda: None)
    for tick in range(20):
        governor.tick(tick * TICK_S, {1: tick * TICK_S * 2}, 0.0)
    assert (governor.cores, governor.running_fraction) == (math.inf, 1.0)
    governor.stop()
