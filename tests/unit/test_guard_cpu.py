"""CPU time of a tree whose processes come and go: none is lost, and none counts twice."""

from __future__ import annotations

import pytest

from resource_guard.cpu import CpuUse
from resource_guard.process_tree import Process


def process(pid: int, cpu_s: float, ended_cpu_s: float = 0.0, *, started: int = 1) -> Process:
    one = Process(pid, started)
    one.cpu_s, one.ended_cpu_s = cpu_s, ended_cpu_s
    return one


@pytest.fixture
def use() -> CpuUse:
    return CpuUse(machine_cores=4)


def test_what_was_used_before_does_not_count(use: CpuUse) -> None:
    assert use.add(100.0, [process(1, 500.0, 500.0)]) == 0


def test_it_is_the_mean_over_ten_seconds(use: CpuUse) -> None:
    """One core busy from the fifth second on."""
    means = [use.add(at, [process(1, max(0.0, at - 5))]) for at in range(21)]
    assert means[5:16] == pytest.approx([0, 1 / 6, 2 / 7, 3 / 8, 4 / 9, 5 / 10, 6 / 10, 7 / 10, 8 / 10, 9 / 10, 1])
    assert means[16:] == pytest.approx([1] * 5)


def test_at_first_over_what_has_passed_but_no_less_than_a_second(use: CpuUse) -> None:
    """Two cores busy from the start: the first tenth of a second is not yet taken for the whole truth."""
    means = [use.add(at / 10, [process(1, at / 5)]) for at in range(31)]
    assert [means[1], means[5], means[10], means[20], means[30]] == pytest.approx([0.2, 1, 2, 2, 2])


def test_a_gap_between_looks_is_averaged_over(use: CpuUse) -> None:
    """After a suspend, or a stall of the machine."""
    use.add(0.0, [process(1, 0.0)])
    assert use.add(100.0, [process(1, 50.0)]) == pytest.approx(0.5)


class TestAProcessThatEnds:
    def test_is_booked_to_its_parent(self, use: CpuUse) -> None:
        """With what it used after the last look."""
        use.add(0.0, [process(1, 1.0), process(2, 3.0)])
        assert use.add(1.0, [process(1, 1.0, 3.5)]) == pytest.approx(0.5)

    def test_with_its_own_descendants(self, use: CpuUse) -> None:
        use.add(0.0, [process(1, 1.0), process(2, 3.0, 2.0), process(3, 4.0)])
        assert use.add(1.0, [process(1, 1.0, 9.5)]) == pytest.approx(0.5)

    def test_counts_even_if_it_was_never_seen(self, use: CpuUse) -> None:
        """It began and ended between two looks."""
        use.add(0.0, [process(1, 1.0)])
        assert use.add(1.0, [process(1, 1.0, 0.9)]) == pytest.approx(0.9)

    def test_is_not_subtracted_when_nobody_waited_for_it(self, use: CpuUse) -> None:
        """Or when it left the tree, orphaned: what it used here it has used."""
        use.add(0.0, [process(1, 1.0), process(2, 0.0)])
        use.add(1.0, [process(1, 1.0), process(2, 1.0)])
        assert use.add(2.0, [process(1, 1.5)]) == pytest.approx(1.5 / 2)


def test_a_process_that_was_overlooked_once_is_no_burst(use: CpuUse) -> None:
    """It had run for an hour: more than the machine has can't have been used since the last look."""
    use.add(0.0, [process(1, 1.0), process(2, 3600.0)])
    use.add(0.1, [process(1, 1.0)])
    assert use.add(0.2, [process(1, 1.0), process(2, 3600.0)]) <= 4 * 0.1


def test_a_new_process_with_an_old_number_is_another(use: CpuUse) -> None:
    use.add(0.0, [process(1, 1.0), process(2, 3.0, started=1)])
    assert use.add(1.0, [process(1, 1.0, 3.0), process(2, 0.5, started=2)]) == pytest.approx(0.5)
