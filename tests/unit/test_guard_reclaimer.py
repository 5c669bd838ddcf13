"""Memory is had back from who does not use it, before anybody's work is ended for it."""

from __future__ import annotations

import logging

import pytest

from resource_guard import reclaimer as module
from resource_guard.actions import TreeEnded
from resource_guard.reclaimer import Reclaimer

MB = 1_000_000
FRESH = 50 * MB
FAT = 300 * MB


class Ending:
    """The end of a process, which takes as many steps as a test says."""

    def __init__(self, pid: int, steps: int = 2) -> None:
        self.pid, self.steps = pid, steps

    def step(self, now: float) -> TreeEnded | None:
        self.steps -= 1
        if self.steps > 0:
            return None
        return TreeEnded(pids=(self.pid,), killed=(), left=(), spared=False, asked=True, took_s=0.1)


@pytest.fixture
def given_back(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the worker's own memory was given back."""
    calls: list[int] = []

    def give_back() -> int:
        calls.append(1)
        return 5 * MB

    monkeypatch.setattr(module, "give_back_own", give_back)
    return calls


@pytest.fixture
def taken_out() -> list[int]:
    return []


@pytest.fixture
def reclaimer(given_back: list[int], taken_out: list[int]) -> Reclaimer:
    def take_out(pid: int) -> Ending | None:
        taken_out.append(pid)
        return Ending(pid) if pid != 3 else None  # that one has got a task by now

    return Reclaimer(take_out)  # type: ignore[arg-type]


def look(reclaimer: Reclaimer, idle: dict[int, int], *, tight: bool = True, at: float = 0.0) -> None:
    reclaimer.look(idle, FRESH, tight=tight, at=at)


def test_while_there_is_enough_nobody_is_disturbed(
    reclaimer: Reclaimer, taken_out: list[int], given_back: list[int]
) -> None:
    look(reclaimer, {1: FAT}, tight=False)
    assert not reclaimer.wants_out
    reclaimer.attend()
    assert (taken_out, given_back) == ([], [])


def test_fat_idle_processes_are_replaced_in_the_thread_that_writes_tasks(
    reclaimer: Reclaimer, taken_out: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """The guard's thread only finds them: the other may be about to hand one of them a task."""
    look(reclaimer, {1: FAT, 2: FRESH})
    assert reclaimer.wants_out
    assert taken_out == []
    with caplog.at_level(logging.INFO):
        reclaimer.attend()
    assert taken_out == [1]
    assert not reclaimer.wants_out
    assert reclaimer.replaced == 1
    assert "idle process 1 has kept memory of tasks long done" in caplog.text


def test_one_that_is_on_its_way_out_is_not_taken_out_again(reclaimer: Reclaimer, taken_out: list[int]) -> None:
    look(reclaimer, {1: FAT})
    reclaimer.attend()
    look(reclaimer, {1: FAT}, at=0.1)
    assert not reclaimer.wants_out
    reclaimer.attend()
    assert taken_out == [1]
    look(reclaimer, {1: FAT}, at=0.2)  # it has ended; this is another with its number
    assert reclaimer.wants_out


def test_one_that_got_a_task_meanwhile_stays(reclaimer: Reclaimer, taken_out: list[int]) -> None:
    look(reclaimer, {3: FAT})
    reclaimer.attend()
    assert taken_out == [3]
    assert reclaimer.replaced == 0


def test_who_was_found_is_spared_when_there_is_room_again(reclaimer: Reclaimer, taken_out: list[int]) -> None:
    look(reclaimer, {1: FAT})
    look(reclaimer, {1: FAT}, tight=False, at=0.1)
    reclaimer.attend()
    assert taken_out == []


def test_the_workers_own_memory_is_given_back_at_once_and_then_seldom(
    reclaimer: Reclaimer, given_back: list[int]
) -> None:
    """It takes milliseconds in which nothing else runs, and grows again slowly."""
    for at in (0.0, 0.1, 30.0, 59.9):
        look(reclaimer, {}, at=at)
    assert len(given_back) == 1
    look(reclaimer, {}, at=60.0)
    assert len(given_back) == 2
