"""Canvases of every shape, whose tasks keep a ledger and do as they are told: work, fail, die, wait.

A task has a spot: a file that gets a line as it begins and one as it ends. Beside it a file `FATE` may lie before that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery import chain, chord, current_app, group

from tasks import task
from tasks.base import BaseTask
from workflows import WorkflowRun, workflow
from workflows.states import TERMINAL_STEP_STATES

#: What a worker that runs these imports.
IMPORTS = f"tests.integration.sample,{__name__}"
#: The file in a folder of spots that makes each of its tasks take a moment.
SLOW = "slow"
_MOMENT_S = 0.03
_WAITS_AT_MOST_S = 30


def _visit(spot: str) -> None:
    """Begin, meet one's fate, end."""
    worker_task: Any = current_app.current_worker_task
    _write(spot, f"begin {worker_task.request.id}")
    fate = Path(f"{spot}.fate")
    if fate.exists():
        _meet(fate.read_text(), spot)
    if Path(spot).with_name(SLOW).exists():
        time.sleep(_MOMENT_S)
    _write(spot, f"end {worker_task.request.id}")


def _write(spot: str, line: str) -> None:
    """In one write: lines of processes that die never mix."""
    fd = os.open(spot, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


def _meet(fate: str, spot: str) -> None:
    if fate == "fail":
        raise ValueError(f"no good at {spot}")
    if fate == "die":
        os._exit(137)
    deadline = time.monotonic() + _WAITS_AT_MOST_S
    while not Path(f"{spot}.go").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(spot)
        time.sleep(0.01)


@task(max_attempts=2)
def give(number: int, spot: str) -> int:
    _visit(spot)
    return number


@task(max_attempts=2)
def plus(number: int, more: int, spot: str) -> int:
    _visit(spot)
    return number + more


@task(max_attempts=2)
def summed(numbers: list[Any], spot: str) -> int:
    """The sum of all numbers in a list, however deep."""
    _visit(spot)
    return sum(_flat(numbers))


def _flat(numbers: Any) -> Iterator[int]:
    if isinstance(numbers, list):
        for one in numbers:
            yield from _flat(one)
    else:
        yield numbers


@task(bind=True, max_attempts=3)
def again(self: Any, number: int, spot: str) -> int:
    """Works the second time."""
    _visit(spot)
    if self.request.retries == 0:
        raise self.retry(countdown=0.02)
    return number


@task(bind=True, max_attempts=2)
def turn_into(self: Any, number: int, how: str, spots: list[str]) -> None:
    """Have others do it, each of which adds one; their sum where they are several."""
    _visit(spots[0])
    rest = spots[1:]
    shapes: dict[str, Callable[[], Any]] = {
        "task": lambda: plus.s(number, 1, rest[0]),
        "chain": lambda: chain(plus.s(number, 1, rest[0]), *(plus.s(1, spot) for spot in rest[1:])),
        "group": lambda: group(plus.s(number, 1, spot) for spot in rest),
        "chord": lambda: chord([plus.s(number, 1, spot) for spot in rest[:-1]], summed.s(rest[-1])),
        "itself": lambda: turn_into.s(number, "task", rest),
        "run": lambda: inner.s(number, rest),
        "run among others": lambda: chain(inner.s(number, rest[:4]), plus.s(1, rest[4])),
    }
    raise self.replace(shapes[how]())


@task(bind=True, max_attempts=2)
def turn_into_and_die(self: Any, number: int, spots: list[str]) -> None:
    """Have others do it, and die as they have just been sent; but only once."""
    _visit(spots[0])
    raise self.replace(chord([plus.s(number, 1, spot) for spot in spots[1:-1]], summed.s(spots[-1])))


def _send_and_die(canvas: Any) -> Any:
    died = Path(f"{turn_into_and_die.request.args[1][0]}.died")
    try:
        return BaseTask.on_replace(turn_into_and_die, canvas)
    finally:
        if not died.exists():
            died.touch()
            os._exit(137)


turn_into_and_die.on_replace = _send_and_die


@dataclass
class Maker:
    """Makes the tasks of a canvas, each with the next spot in a folder."""

    folder: str
    spots: int = 0

    def spot(self) -> str:
        self.spots += 1
        return f"{self.folder}/{self.spots}"

    def several(self, count: int) -> list[str]:
        return [self.spot() for _ in range(count)]

    def give(self, number: int) -> Any:
        return give.s(number, self.spot())

    def plus(self, more: int = 1) -> Any:
        return plus.s(more, self.spot())

    def summed(self) -> Any:
        return summed.s(self.spot())

    def again(self) -> Any:
        return again.s(self.spot())

    def turn_into(self, how: str, count: int) -> Any:
        return turn_into.s(how, self.several(count))

    def inner(self) -> Any:
        return inner.s(self.several(4))

    def chord(self) -> Any:
        """1 + 2."""
        return chord([self.give(1), self.give(2)], self.summed())

    def many_chords(self, count: int) -> Any:
        """One after the other, of two tasks and a body each."""
        steps = [self.give(1)]
        for _ in range(count):
            steps += [group(self.plus(0), self.plus(-1)), self.summed()]
        return chain(*steps)


@workflow
def inner(number: int, spots: list[str]) -> Any:
    """Four steps; 2 * number + 3."""
    return chain(
        plus.s(number, 1, spots[0]), group(plus.s(0, spots[1]), plus.s(0, spots[2])), summed.s(spots[3]), plus_one.s()
    )


@workflow
def replacing(number: int, spots: list[str]) -> Any:
    """Four steps, of which one comes in the place of another; number + 3."""
    return chain(turn_into.s(number, "chain", spots[:3]), plus.s(1, spots[3]))


@task
def plus_one(number: int) -> int:
    return number + 1


#: Shapes, what their runs answer, and how many steps they have.
SHAPES: dict[str, tuple[Callable[[Maker], Any], Any, int]] = {
    "one task": (lambda m: m.give(1), 1, 1),
    "chain": (lambda m: chain(m.give(1), m.plus(), m.plus()), 3, 3),
    "group": (lambda m: group(m.give(1), m.give(2)), [1, 2], 3),
    "group of one": (lambda m: group([m.give(1)]), [1], 2),
    "empty group": (lambda m: group([]), [], 1),
    "group from a generator": (lambda m: group(m.give(n) for n in range(3)), [0, 1, 2], 4),
    "group in a group": (lambda m: group(m.give(1), group(m.give(2), group(m.give(3)))), [1, 2, 3], 4),
    "chord": (lambda m: m.chord(), 3, 3),
    "chord from a generator": (lambda m: chord((m.give(n) for n in range(3)), m.summed()), 3, 4),
    "chord with an empty header": (lambda m: chord([], m.summed()), 0, 1),
    "chain of groups": (
        lambda m: chain(group(m.give(1), m.give(2)), group(m.summed(), m.summed()), m.summed()), 6, 5,
    ),
    "group in a chain": (lambda m: chain(m.give(1), group(m.plus(), m.plus(2)), m.summed(), m.plus()), 6, 5),
    "group at the end of a chain": (lambda m: chain(m.give(1), group(m.plus(), m.plus(2))), [2, 3], 4),
    "chains in a group": (
        lambda m: group(chain(m.give(1), m.plus()), chain(m.give(2), m.plus(), m.plus())), [2, 4], 6,
    ),
    "chord in a chord's header": (lambda m: chord([m.chord(), m.give(3)], m.summed()), 6, 5),
    "chord in a chord in a chord": (
        lambda m: chord([chord([m.chord(), m.give(3)], m.summed()), m.give(4)], m.summed()), 10, 7,
    ),
    "chord as a chord's body": (
        lambda m: chord([m.give(1), m.give(2)], chord([m.summed(), m.summed()], m.summed())), 6, 5,
    ),
    "group as a chord's body": (lambda m: chord([m.give(1), m.give(2)], group(m.summed(), m.summed())), [3, 3], 5),
    "chain as a chord's body": (lambda m: chord([m.give(1), m.give(2)], chain(m.summed(), m.plus(), m.plus())), 5, 5),
    "chord after a chord": (lambda m: chain(m.chord(), group(m.plus(), m.plus()), m.summed()), 8, 6),
    "chain that ends in a group in a header": (
        lambda m: chord([chain(m.give(1), group(m.plus(), m.plus(2))), m.give(4)], m.summed()), 9, 5,
    ),
    "deep": (
        lambda m: chain(
            m.give(1), group(chain(m.plus(), group(m.plus(), chain(m.plus(), m.plus())), m.summed()), m.plus()),
            m.summed(),
        ), 9, 8,
    ),
    "map": (lambda m: plus_one.map([1, 2]), [2, 3], 1),
    "starmap": (lambda m: give.starmap([(n, m.spot()) for n in range(3)]), [0, 1, 2], 1),
    "chunks": (lambda m: give.chunks([(n, m.spot()) for n in range(5)], 2), [[0, 1], [2, 3], [4]], 4),
    "immutable": (lambda m: chain(m.give(1), give.si(5, m.spot()), m.plus()), 6, 3),
    "immutable body": (lambda m: chord([m.give(1), m.give(2)], give.si(5, m.spot())), 5, 3),
    "linked": (lambda m: chain(m.give(1).set(link=[plus.si(1, 1, m.spot())]), m.plus()), 2, 3),
    "retried": (lambda m: chain(m.give(1), m.again(), m.plus()), 2, 3),
    "retried in a header": (lambda m: chain(m.give(1), group(m.again(), m.plus()), m.summed()), 3, 4),
    "replaced by a task": (lambda m: chain(m.give(1), m.turn_into("task", 2), m.plus()), 3, 3),
    "replaced by a chain": (lambda m: chain(m.give(1), m.turn_into("chain", 4), m.plus()), 5, 5),
    "replaced by a group": (lambda m: chain(m.give(1), m.turn_into("group", 4), m.summed()), 6, 6),
    "replaced by a chord": (lambda m: chain(m.give(1), m.turn_into("chord", 4)), 4, 4),
    "replaced twice": (lambda m: chain(m.give(1), m.turn_into("itself", 3), m.plus()), 3, 3),
    "replaced by a run": (lambda m: chain(m.give(1), m.turn_into("run", 5), m.plus()), 6, 3),
    "replaced in a header": (lambda m: chord([turn_into.s(1, "chord", m.several(4)), m.give(1)], m.summed()), 5, 5),
    "replaced by a group in a header": (
        lambda m: chord([turn_into.s(1, "group", m.several(3)), m.give(1)], m.summed()), 5, 5,
    ),
    "replaced as a body": (lambda m: chord([m.give(1)], chain(m.summed(), m.turn_into("group", 3))), [2, 2], 5),
    "replaced by a run that is among others": (
        lambda m: chain(m.give(1), m.turn_into("run among others", 6), m.plus()), 7, 4,
    ),
    "run that has itself replaced": (lambda m: chain(replacing.s(1, m.several(4)), m.plus()), 5, 2),
    "run first": (lambda m: chain(inner.s(1, m.several(4)), m.plus()), 6, 2),
    "run between": (lambda m: chain(m.give(1), m.inner(), m.plus()), 6, 3),
    "run last": (lambda m: chain(m.give(1), m.inner()), 5, 6),
    "run in a header": (lambda m: chord([inner.s(1, m.several(4)), m.give(1)], m.summed()), 6, 3),
    "run as a body": (lambda m: chord([m.give(1), m.give(2)], chain(m.summed(), m.inner(), m.plus())), 10, 5),
    "a hundred steps": (lambda m: m.many_chords(33), 1, 100),
}  # fmt: skip


def spots_of(shape: str) -> range:
    """The numbers of a shape's spots."""
    maker = Maker("")
    canvas = SHAPES[shape][0](maker)
    for generated in (getattr(canvas, "tasks", None), getattr(getattr(canvas, "tasks", None), "tasks", None)):
        list(generated or ())
    return range(1, maker.spots + 1)


@workflow
def shaped(shape: str, folder: str) -> Any:
    """A canvas by its name."""
    return SHAPES[shape][0](Maker(folder))


@workflow
def dies_as_it_is_replaced(folder: str) -> Any:
    """5 steps at 5 spots."""
    maker = Maker(folder)
    return chord([turn_into_and_die.s(1, maker.several(4)), maker.give(1)], maker.summed())


@workflow
def same_signatures() -> Any:
    """The same one in a group, and in a chain in it."""
    step = plus_one.s()
    return chain(plus_one.s(0), group(step, step, chain(step, step)), summed_up.s())


@task
def summed_up(numbers: list[int]) -> int:
    return sum(numbers)


@workflow
def starts_with_a_run() -> Any:
    return chain(inner_only.s(1), plus_one.s())


@workflow
def inner_only(number: int) -> Any:
    return chain(plus_one.s(number), plus_one.s())


@workflow
def empty_chain() -> Any:
    return chain()


def assert_all_ended(run: WorkflowRun) -> None:
    """Of a run that has ended, no step will ever begin."""
    open_steps = [step for step in run.steps() if step.state not in TERMINAL_STEP_STATES]
    assert open_steps == [], f"{len(open_steps)} steps of the run have not ended"
