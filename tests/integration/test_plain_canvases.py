"""Canvases called from outside, in no run, behave as on stock Celery: results, their order, errors, callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError

from tasks import task
from tests.integration.conftest import running_system
from tests.integration.sample import add, append_line, fail, ignored, join, note, total, twice
from tests.integration.system import System
from tests.waiting import wait_until

IMPORTS = f"tests.integration.sample,{__name__}"


@task(bind=True)
def ids(self: Any, *_: Any) -> list[str]:
    """Its own, its root's, its parent's."""
    return [self.request.id, self.request.root_id, self.request.parent_id]


@task(bind=True)
def give_way(self: Any, count: int) -> None:
    raise self.replace(chord([add.s(number, 0) for number in range(count)], total.s()))


@task(bind=True)
def call_one_more(self: Any, number: int) -> int:
    """One more member of the chord it is in."""
    self.add_to_chord(add.s(number, 100))
    return number


ANSWERS: dict[str, tuple[Callable[[], Any], Any]] = {
    "chain": (lambda: chain(add.s(1, 1), twice.s(), add.s(3)), 7),
    "chain of one": (lambda: chain(add.s(1, 1)), 2),
    "results of a group in its order": (lambda: group(add.s(n, 0) for n in range(20)), list(range(20))),
    "group of groups": (lambda: group(group(add.s(1, 0)), group(add.s(2, 0), add.s(3, 0))), [1, 2, 3]),
    "group in a chain in a group": (lambda: group(chain(add.s(1, 1), group(twice.s(), twice.s()))), [4, 4]),
    "group at the end of a chain": (lambda: chain(add.s(1, 1), group(add.s(1), add.s(2))), [3, 4]),
    "group, then group": (lambda: chain(group(add.s(1, 1), add.s(2, 2)), group(total.s(), total.s())), [6, 6]),
    "chord": (lambda: chord([add.s(1, 1), add.s(2, 2)], total.s()), 6),
    "chord of a generator": (lambda: chord((add.s(n, n) for n in range(4)), total.s()), 12),
    "large chord": (lambda: chord([add.si(n, 0) for n in range(500)], total.s()), sum(range(500))),
    "chord with an empty header": (lambda: chord([], total.s()), 0),
    "chord with one member": (lambda: chord([add.s(1, 1)], total.s()), 2),
    "chord, then chord": (lambda: chain(chord([add.s(1, 1)] * 2, total.s()), group(add.s(1), add.s(2)), total.s()), 11),
    "chord in a header": (lambda: chord([chord([add.s(1, 1), add.s(1, 1)], total.s()), add.s(3, 3)], total.s()), 10),
    "chain in a header": (lambda: chord([chain(add.s(1, 1), twice.s()), add.s(1, 1)], total.s()), 6),
    "group in a header": (lambda: chord([group(add.s(1, 1), add.s(2, 2)), add.s(3, 3)], total.s()), 12),
    "chain with a chord in a header": (
        lambda: chord([chain(add.s(1, 1), group(add.s(1), add.s(2)), total.s()), add.s(1, 0)], total.s()), 8,
    ),
    "chain as a body": (lambda: chord([add.s(1, 1)] * 2, chain(total.s(), twice.s())), 8),
    "group as a body": (lambda: chord([add.s(1, 1)] * 2, group(total.s(), total.s())), [4, 4]),
    "immutable body": (lambda: chord([add.s(1, 1)] * 2, add.si(5, 5)), 10),
    "immutable group": (lambda: chain(add.s(1, 1), group(add.si(1, 0), add.si(2, 0))), [1, 2]),
    "a member that ignores its result": (lambda: chord([ignored.s(3), add.s(1, 1)], total.s()), 5),
    "a task that gives way": (lambda: chain(give_way.s(4), twice.s()), 12),
    "a member that gives way": (lambda: chord([give_way.s(4), add.s(1, 1)], total.s()), 8),
    "a body that gives way": (lambda: chord([add.s(1, 1), add.s(1, 1)], chain(total.s(), give_way.s())), 6),
    "a member that adds one": (lambda: chord([call_one_more.s(1), add.s(1, 1)], total.s()), 104),
    "priority": (lambda: chord([add.s(1, 1).set(priority=9), add.s(1, 1)], total.s().set(priority=0)), 4),
    "words in order": (lambda: chord([chain(join.si([word])) for word in "abc"], join.s()), "a b c"),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("system")) as system:
        system.start_worker(imports=IMPORTS)
        yield system


@pytest.mark.parametrize("shape", ANSWERS)
def test_it_answers(shape: str) -> None:
    build, answer = ANSWERS[shape]
    assert build().apply_async().get(timeout=30) == answer


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


#: Canvases that fail, and how often what is linked to the whole of each for that is called.
FAILING: dict[str, tuple[Callable[[], Any], int]] = {
    "task": (lambda: fail.s("no good"), 1),
    "first of a chain": (lambda: chain(fail.si("no good"), add.si(1, 1), add.si(1, 1)), 1),
    "in a chain": (lambda: chain(add.si(1, 1), fail.si("no good"), add.si(1, 1)), 1),
    "last of a chain": (lambda: chain(add.si(1, 1), add.si(1, 1), fail.si("no good")), 1),
    "each member of a group": (lambda: group(fail.si("no good"), fail.si("no good"), add.si(1, 1)), 2),
    "first of a header": (lambda: chord([fail.si("no good"), add.si(1, 1), add.si(1, 1)], total.s()), 1),
    "in a header": (lambda: chord([add.si(1, 1), fail.si("no good"), add.si(1, 1)], total.s()), 1),
    "last of a header": (lambda: chord([add.si(1, 1), add.si(1, 1), fail.si("no good")], total.s()), 1),
    "body": (lambda: chord([add.si(1, 1), add.si(1, 1)], fail.si("no good")), 1),
    "end of a chain in a header": (lambda: chord([chain(add.si(1, 1), fail.si("no good"))], total.s()), 1),
    "chord in a chain": (
        lambda: chain(add.si(1, 1), chord([fail.si("no good"), add.si(1, 1)], total.s()), add.s(1)), 1,
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*task_allow_error_cb_on_chord_header.*")
@pytest.mark.parametrize("shape", FAILING)
def test_its_failure_reaches_who_waits_and_what_is_linked(shape: str, plain: System, path: Path) -> None:
    build, calls = FAILING[shape]
    canvas = build()
    canvas.link_error(note.si(str(path)))
    result = canvas.apply_async()
    with pytest.raises((ValueError, ChordError), match="no good"):
        result.get(timeout=20)
    wait_until(lambda: _lines(path) >= calls and plain.is_idle(), what="what is linked")
    assert _lines(path) == calls


def test_all_after_a_failed_task_of_a_chain_have_failed(plain: System) -> None:
    last = chain(add.si(1, 1), fail.si("no good"), add.si(1, 1), add.si(1, 1)).apply_async()
    with pytest.raises(ValueError, match="no good"):
        last.get(timeout=20)
    # Celery fails what comes after it from the last to the first.
    wait_until(last.parent.ready, what="the failure of the one before the last")
    assert (last.state, last.parent.state) == ("FAILURE", "FAILURE")
    assert (last.parent.parent.state, last.parent.parent.parent.state) == ("FAILURE", "SUCCESS")


def test_of_a_failed_chord_the_other_members_keep_their_results() -> None:
    result = chord([add.si(1, 1), fail.si("no good"), add.si(2, 2)], total.s()).apply_async()
    with pytest.raises((ValueError, ChordError), match="no good"):
        result.get(timeout=20)
    members = result.parent.results
    wait_until(lambda: all(member.ready() for member in members), what="the end of all members")
    assert [member.state for member in members] == ["SUCCESS", "FAILURE", "SUCCESS"]


def test_a_callback_is_called_with_the_result(path: Path) -> None:
    add.apply_async((1, 1), link=append_line.si(str(path), "linked")).get(timeout=20)
    wait_until(lambda: _lines(path) == 1, what="the callback")


def test_root_and_parents_are_known() -> None:
    result = chain(ids.si(), ids.si(), group(ids.si(), ids.si())).apply_async()
    first, second, members = result.parent.parent.get(20), result.parent.get(20), result.get(timeout=20)
    assert first[1:] == [first[0], None]
    assert second[1:] == [first[0], first[0]]
    assert [member[1:] for member in members] == [[first[0], second[0]]] * 2
