"""How many tasks at a time."""

from __future__ import annotations

from resource_guard.slots import STEP_S, Slots


def test_one_fewer_than_run_each_step_down_to_the_least() -> None:
    """Fewer than are allowed may be running: it is those that run that make it tight."""
    slots = Slots(8)
    assert [slots.adapt(tight=True, running=5, least=2, at=second * STEP_S) for second in range(5)] == [4, 3, 2, 2, 2]


def test_not_faster_than_a_step() -> None:
    slots = Slots(8)
    assert slots.adapt(tight=True, running=8, least=1, at=10.0) == 7
    assert slots.adapt(tight=True, running=8, least=1, at=10.0 + STEP_S / 2) == 7
    assert slots.adapt(tight=False, running=8, least=1, at=10.0 + STEP_S / 2) == 7


def test_one_more_each_step_when_it_is_over_up_to_all() -> None:
    slots = Slots(3)
    slots.adapt(tight=True, running=3, least=1, at=0.0)
    slots.adapt(tight=True, running=3, least=1, at=STEP_S)
    assert slots.now == 1
    assert [slots.adapt(tight=False, running=0, least=1, at=second * STEP_S) for second in range(2, 6)] == [2, 3, 3, 3]


def test_a_pool_that_grows_or_shrinks_is_followed() -> None:
    slots = Slots(2)
    slots.most = 4
    assert slots.adapt(tight=False, running=0, least=1, at=0.0) == 3
    slots.most = 1
    assert slots.adapt(tight=False, running=0, least=5, at=STEP_S) == 1
