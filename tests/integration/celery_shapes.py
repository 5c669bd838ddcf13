"""Canvases as Celery's own integration tests have them, to be sent by a caller as they are, or built by a workflow."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery import chain, chord, group
from celery.canvas import Signature
from celery.exceptions import SoftTimeLimitExceeded

from tasks import task
from tests.integration.sample import add, total
from workflows import workflow

#: What a worker that runs these imports.
IMPORTS = f"tests.integration.sample,{__name__}"


@task
def same(value: Any) -> Any:
    return value


@task
def joined(lists: list[list[Any]], more: list[Any]) -> list[Any]:
    return [*lists, *more]


@task(bind=True)
def add_by_another(self: Any, x: int, y: int) -> None:
    raise self.replace(add.s(x, y))


@task(bind=True)
def add_to_each(self: Any, numbers: list[Any], more: Any) -> None:
    raise self.replace(group(add.s(number, more) for number in numbers))


@task(bind=True)
def same_by_a_chain(self: Any, value: Any) -> None:
    raise self.replace(chain(same.s(value), same.s()))


@task(bind=True)
def fail_by_another(self: Any) -> None:
    raise self.replace(broken.si())


@task
def broken(*_: Any) -> None:
    raise ValueError("no good")


@task(bind=True)
def with_more_members(self: Any, numbers: list[int], more: int) -> int:
    """Has members added to the chord that it is a member of."""
    for number in numbers:
        self.add_to_chord(add.s(number, more))
    return 0


@task(bind=True)
def with_a_chord_more(self: Any, numbers: list[int], more: int) -> int:
    self.add_to_chord(chord([add.s(number, more) for number in numbers], total.s()))
    return 0


@task
def not_in_time() -> int:
    """Has a second, takes longer, and makes the best of it."""
    try:
        time.sleep(10)
    except SoftTimeLimitExceeded:
        return 0
    return 10


@task
def in_order(numbers: list[int]) -> list[int]:
    return sorted(numbers)


@task(bind=True)
def own_priority(self: Any, *_: Any) -> int:
    priority: int = self.request.delivery_info["priority"]
    return priority


@task(bind=True)
def retried_once(self: Any, value: Any) -> Any:
    if self.request.retries == 0:
        raise self.retry(countdown=0.02)
    return value


@task(ignore_result=True)
def forgotten(value: int) -> int:
    return value


def _one_after_another(*rest: Signature) -> Any:
    """1, twice 2, 4, 5, and the rest after that: by `|`, as Celery makes chords of groups."""
    canvas = add.si(1, 0) | group(add.s(1), add.s(1)) | total.s() | add.s(1)
    for node in rest:
        canvas |= node
    return canvas


def _from_a_group(ones: int) -> Any:
    canvas = group(add.s(1, 1), add.s(1, 1)) | total.s()
    for _ in range(ones):
        canvas |= add.s(1)
    return canvas | group(add.s(1), add.s(1))


_MANY = 42

#: Canvases, and what they answer.
SHAPES: dict[str, tuple[Callable[[], Any], Any]] = {
    # Chains
    "by |": (lambda: add.s(4, 4) | add.s(8) | add.s(16), 32),
    "chain in a chain, one of its tasks replaced, then a group": (
        lambda: add.s(2, 2) | (add.s(4) | add_by_another.s(8) | add.s(16)) | group(add.s(n) for n in range(3)),
        [32, 33, 34],
    ),
    "chain in a chain of one": (lambda: chain([chain(add.s(1, 1))]), 2),
    "chain in a group in a chain": (lambda: add.s(5, 6) | group((add.s(1) | add.s(2), add.s(3))), [14, 14]),
    "chain with a group in a group": (
        lambda: group(same.si(1), same.si(2), chain(same.si(5), group(same.si(3), same.si(4)))), [1, 2, [3, 4]],
    ),
    "group, group, task": (
        lambda: add.si(1, 0) | group(add.s(1), add.s(1)) | group(total.s(), total.s()) | total.s(), 8,
    ),
    "chord, task, group, task": (lambda: _one_after_another(group(add.s(1), add.s(1)), total.s()), 12),
    "chord, task, chord": (lambda: _one_after_another(chord(group(add.s(1), add.s(1)), total.s())), 12),
    "chord, task, group": (lambda: _one_after_another(group(add.s(1), add.s(1))), [6, 6]),
    "group, two tasks, group": (lambda: _from_a_group(1), [6, 6]),
    "group, three tasks, group": (lambda: _from_a_group(2), [7, 7]),
    "group, four tasks, group": (lambda: _from_a_group(3), [8, 8]),
    "group alone in a chain": (lambda: chain(group(same.s(42), same.s(42))), [42, 42]),
    "group in the middle of a chain": (lambda: chain(same.s(42), group(same.s(), same.s()), same.s()), [42, 42]),
    # Groups
    "group of groups, of a list, of a generator": (
        lambda: group(group(add.si(1, 1), add.si(2, 2)), group([add.si(1, 1)]), group(add.si(n, n) for n in (1, 2))),
        [2, 4, 2, 2, 4],
    ),
    "groups four deep": (
        lambda: group(add.si(1, 10), group(add.si(1, 100), group(add.si(1, 1000), add.si(1, 2000)))),
        [11, 101, 1001, 2001],
    ),
    "wide group": (lambda: group(same.s(n) for n in range(150)), list(range(150))),
    "chord of one in a group": (lambda: group([chord([same.si(42)], same.s())]), [[42]]),
    "chord of a long chain in a group": (lambda: group([chord([chain([same.si(7)] * _MANY)], same.s())]), [[7]]),
    "chord of a wide group in a group": (
        lambda: group([chord([group([same.si(7)] * _MANY)], same.s())]), [[7] * _MANY],
    ),
    "chord of a wide chord in a group": (
        lambda: group([chord([chord([same.si(1)] * _MANY, same.si(7))], same.s())]), [[7]],
    ),
    "chord of all of these in a group": (
        lambda: group([chord([
            same.si(1), chain([same.si(1)] * _MANY), group([same.si(1)] * _MANY),
            chord([same.si(1)] * _MANY, same.si(7)),
        ], same.s())]),
        [[1] * (_MANY + 2) + [7]],
    ),
    "chord with a chain as its body in a group": (lambda: group([chord(same.si(42), chain((same.s(),)))]), [[42]]),
    # Chords
    "chords whose members and bodies are replaced": (
        lambda: chord([
            chord([add.s(1, 2), add_by_another.s(3, 4)], add_to_each.s(5)) | total.s(),
            chord([add_by_another.s(6, 7), add.s(0, 0)], add_to_each.s(8)) | total.s(),
        ], add_to_each.s(9)),
        [29, 38],
    ),
    "members added to a chord": (lambda: group([with_more_members.s([1, 2, 3], 4)]) | in_order.s(), [0, 5, 6, 7]),
    "a chord added to a chord": (lambda: group([with_a_chord_more.s([1, 2, 3], 4)]) | in_order.s(), [0, 18]),
    "body replaced by a group": (
        lambda: add.s(2, 2) | group(add.s(n) for n in range(4)) | add_to_each.s(8), [12, 13, 14, 15],
    ),
    "group in a chain in a group in a chain": (
        lambda: chain(
            add.si(1, 0), group(add.si(1, 100), chain(add.si(1, 200), group(add.si(1, 1000), add.si(1, 2000)))),
            add.si(1, 10),
        ), 11,
    ),
    "header of one task": (lambda: chord([add.s(2, 5)], add_to_each.s(9)), [16]),
    "header of one task by |": (lambda: group([add.s(2, 5)]) | add_to_each.s(9), [16]),
    "empty header": (lambda: chord([], same.s()), []),
    "empty group | task": (lambda: group([]) | same.s(), []),
    "empty group": (lambda: group([]), []),
    "body replaced by an empty group": (lambda: chord([], add_to_each.s(9)), []),
    "chords in a header keep their lists": (
        lambda: chord(
            [chord([add.s(1, 2), add.s(3, 4)], joined.s([5])), chord([add.s(6, 7)], joined.s([10]))], joined.s(["A"])
        ), [[3, 7, 5], [13, 10], "A"],
    ),
    "chords in a header by | keep their lists": (
        lambda: group([
            group([add.s(1, 2), add.s(3, 4)]) | joined.s([5]), group([add.s(6, 7)]) | joined.s([10]),
        ]) | joined.s(["A"]), [[3, 7, 5], [13, 10], "A"],
    ),
    "chords of one in each other": (
        lambda: group([group([group([group([add.s(1, 2)]) | joined.s([3])]) | joined.s([4])]) | joined.s([5])])
        | joined.s([6]), [[[[3, 3], 4], 5], 6],
    ),
    "chords side by side": (
        lambda: group(*(chord(group(add.s(1, 2), add.s(3, 4)), total.s()) for _ in range(2))), [10, 10],
    ),
    "chains with chords in a header": (
        lambda: chord(group([
            chain(add.si(1, 2), chord(group([add.si(1, 2), add.si(1, 2)]), add.si(1, 2))) for _ in range(2)
        ]), total.s()), 6,
    ),
    "chord in a chain in a chord in a chain": (
        lambda: chain(
            same.si(1),
            chord([same.si(2), chain(same.si(3), chord([same.si(4), same.si(5)], same.si(6)))], joined.s([7])),
        ), [2, 6, 7],
    ),
    "wide header": (lambda: group(same.si(n) for n in range(150)) | total.s(), 11_175),
    "wide header after a task": (lambda: same.si(1) | group(same.s() for _ in range(150)) | total.s(), 150),
    "group in a header": (lambda: chord((group(same.s(42), same.s(42)),), same.s()), [42, 42]),
    "group at the end of a chain in a header": (
        lambda: chord(group(chain(same.s(42), group(same.s(), same.s()))), same.s()), [[42, 42]],
    ),
    "member that runs out of its time": (
        lambda: chord([add.s(1, 2), not_in_time.s().set(soft_time_limit=1)], total.s()), 3,
    ),
    "chords of three makes": (
        lambda: group([
            group(same.si(1), same.si(2)) | same.si("body"), chord(group(same.si(3), same.si(4)), same.si("body")),
            chord((member for member in [same.si(5), same.si(6)]), same.si("body")),
        ]), ["body"] * 3,
    ),
    "groups in chains in a group in a chain": (
        lambda: add.si(1, 1)
        | group(*(add.s(1) | group(add.si(1, 1), add.si(2, 2)) | add.si(2, 2) for _ in range(2))) | add.si(1, 1), 2,
    ),
    "members that ignore their results": (lambda: chord([forgotten.s(1), forgotten.s(2)], total.s()), 3),
    "all members retried": (lambda: chord([retried_once.s(n) for n in range(4)], total.s()), 6),
    "body retried": (lambda: chord([same.si(1), same.si(2)], retried_once.s()), [1, 2]),
    # Replaced by a chain, at any place
    "replaced": (lambda: same_by_a_chain.si(42), 42),
    "replaced, first of a chain": (lambda: chain(same_by_a_chain.si(42), same.s()), 42),
    "replaced in a chain": (lambda: chain(same.s(42), same_by_a_chain.s(), same.s()), 42),
    "replaced, last of a chain": (lambda: chain(same.s(42), same_by_a_chain.s()), 42),
    "replaced, first of a group": (lambda: group(same_by_a_chain.si(1), same.s(2)), [1, 2]),
    "replaced in a group": (lambda: group(same.s(1), same_by_a_chain.s(2), same.s(3)), [1, 2, 3]),
    "replaced, last of a group": (lambda: group(same.s(1), same_by_a_chain.s(2)), [1, 2]),
    "replaced as a header": (lambda: chord(same_by_a_chain.si(42), same.s()), [42]),
    "replaced, first of a header": (lambda: chord((same_by_a_chain.si(1), same.s(2)), same.s()), [1, 2]),
    "replaced in a header": (lambda: chord((same.s(1), same_by_a_chain.s(2), same.s(3)), same.s()), [1, 2, 3]),
    "replaced, last of a header": (lambda: chord((same.s(1), same_by_a_chain.s(2)), same.s()), [1, 2]),
    "replaced as a body": (lambda: chord(same.s(42), same_by_a_chain.s()), [42]),
    "replaced, first of a body": (lambda: chord(same.s(42), chain(same_by_a_chain.s(), same.s())), [42]),
    "replaced in a body": (lambda: chord(same.s(42), chain(same.s(), same_by_a_chain.s(), same.s())), [42]),
    "replaced, last of a body": (lambda: chord(same.s(42), chain(same.s(), same_by_a_chain.s())), [42]),
    # Priorities
    "priority": (lambda: chain(own_priority.s().set(priority=3)), 3),
    "priority of the last": (lambda: own_priority.s().set(priority=3) | own_priority.s().set(priority=5), 5),
}  # fmt: skip

#: Canvases that Celery fails, since it hands over but the first result of a group, and what their runs answer.
OF_RUNS: dict[str, tuple[Callable[[], Any], Any]] = {
    "three groups": (lambda: _three_groups(), [12, 12]),
    "five groups": (lambda: _three_groups() | group(total.s(), total.s()) | group(same.s(), total.s()), [[24, 24], 48]),
    "three groups and a chain": (lambda: chain(_three_groups(), chain(total.s(), add.s(1))), 25),
    "groups with members in rows": (
        lambda: chain(
            group(add.s(1, 1), chain(add.s(2, 2), add.s(1))), group(total.s(), chain(total.s(), add.s(1))),
            group(total.s(), total.s()),
        ), [15, 15],
    ),
    "chord with a group in its body's body": (
        lambda: chain(
            chord([add.s(1, 1)], chord([total.s(), total.s()], group(total.s(), total.s()))),
            group(total.s(), total.s()), total.s(),
        ), 16,
    ),
    "three groups in a header": (lambda: chord([_three_groups(), same.si(1)], same.s()), [[12, 12], 1]),
}  # fmt: skip


def _three_groups() -> Any:
    return group(add.s(1, 1), add.s(2, 2)) | group(total.s(), total.s()) | group(total.s(), total.s())


@workflow
def built(shape: str) -> Any:
    """A canvas by its name."""
    return (SHAPES | OF_RUNS)[shape][0]()
