"""What a pool process holds without its task."""

from __future__ import annotations

from resource_guard.idle import IdleSizes
from resource_guard.observation import ProcessUse

MB = 1_000_000


def look(sizes: IdleSizes, held_mb: dict[int, int], tasks: dict[int, int] | None = None) -> dict[int, int]:
    """What is known then of each, in MB."""
    children = {pid: ProcessUse(pid=pid, rss_bytes=size * MB, cpu_s=0.0, pids=(pid,)) for pid, size in held_mb.items()}
    sizes.look(children, tasks or {})
    return {pid: sizes.of(pid) // MB for pid in held_mb}


def test_what_it_held_before_its_task_began() -> None:
    sizes = IdleSizes()
    look(sizes, {1: 20})
    assert look(sizes, {1: 300}, {1: 7}) == {1: 20}
    assert look(sizes, {1: 60}) == {1: 60}
    assert look(sizes, {1: 300}, {1: 8}) == {1: 60}


def test_one_that_gives_back_during_its_task_holds_less() -> None:
    sizes = IdleSizes()
    look(sizes, {1: 60})
    assert look(sizes, {1: 30}, {1: 7}) == {1: 30}


def test_one_that_was_never_seen_idle_had_what_a_new_one_has_at_most() -> None:
    """It took a task as soon as it was there; a fork of a worker that has grown meanwhile holds more."""
    sizes = IdleSizes()
    look(sizes, {1: 20})
    assert look(sizes, {1: 20, 2: 220}, {2: 7}) == {1: 20, 2: 20}
    look(sizes, {1: 20, 3: 30})
    assert look(sizes, {1: 20, 3: 30, 4: 100, 5: 25}, {4: 8, 5: 9}) == {1: 20, 3: 30, 4: 30, 5: 25}
    assert sizes.fresh_bytes == 20 * MB


def test_what_a_task_has_left_is_not_the_next_ones_though_it_followed_at_once() -> None:
    sizes = IdleSizes()
    look(sizes, {1: 20})
    look(sizes, {1: 90}, {1: 7})
    assert look(sizes, {1: 110}, {1: 8}) == {1: 90}
    assert look(sizes, {1: 200}, {1: 8}) == {1: 90}
    assert look(sizes, {1: 40}, {1: 9}) == {1: 40}


def test_what_the_process_has_said_is_better_than_a_guess() -> None:
    """Else a task that follows a large one at once would seem to take little, and what there is for others, too."""
    told = {1: 25 * MB}
    sizes = IdleSizes(told)
    look(sizes, {1: 20})
    look(sizes, {1: 600}, {1: 7})
    assert look(sizes, {1: 700}, {1: 8}) == {1: 25}
    told[1] = 40 * MB
    assert look(sizes, {1: 700}, {1: 8}) == {1: 25}
    assert look(sizes, {1: 700}, {1: 9}) == {1: 40}


def test_a_process_that_has_ended_is_forgotten() -> None:
    sizes = IdleSizes()
    look(sizes, {1: 20, 2: 30})
    look(sizes, {2: 30})
    assert sizes.idle({}) == {2: 30 * MB}
    assert sizes.idle({2: 7}) == {}
