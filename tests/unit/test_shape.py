"""How the graph of a run is written, and what comes after what in it."""

from __future__ import annotations

from typing import Any

import pytest
from celery import chain, chord, group

from tests.integration.sample import add, total
from workflows.graph import Graph
from workflows.shape import Node, comes_after, notation, parse

STEP = add.si(1, 1)
WIDE = chain(STEP, chord([STEP] * 1000, total.s()), STEP)


@pytest.mark.parametrize(
    ("canvas", "written"),
    [
        (STEP, "."),
        (chain(STEP, STEP), "c(2*.)"),
        (group(STEP, chain(STEP, STEP), STEP), "g(.,c(2*.),.)"),
        (chord([STEP] * 1000, total.s()), "k(1001*.)"),
        (Graph([STEP] * 3, total.s(), needs=[[], [0], [0, 1]]), "k[[],[0],[0,1]](4*.)"),
        (chord([group(STEP, STEP)] * 3, chain(total.s(), STEP)), "k(3*g(2*.),c(2*.))"),
    ],
)
def test_a_canvas_is_written_in_a_few_characters_and_read_again(canvas: Any, written: str) -> None:
    assert notation(canvas) == written
    node = parse(written)
    assert node == parse(written)
    assert node.kind == written[0]


def test_children_are_found_by_their_places() -> None:
    node = parse("k(3*.,g(2*.),c(2*.))")
    assert node.width == 5
    assert [node.child(index).kind for index in range(5)] == [".", ".", ".", "g", "c"]
    with pytest.raises(IndexError):
        node.child(5)


def _after(written: str, place: str, **below: str) -> set[str]:
    graphs = {"": parse(written)} | {name.removeprefix("at").replace("_", "."): parse(w) for name, w in below.items()}
    places = list(_places(graphs, graphs[""], ""))
    one = tuple(map(int, place.split(".")))
    return {other for other in places if comes_after(graphs, one, tuple(map(int, other.split("."))))}


def _places(graphs: dict[str, Node], node: Node, prefix: str) -> Any:
    if node.kind == ".":
        yield prefix or "0"
        if prefix in graphs and prefix:
            yield from _places(graphs, graphs[prefix], prefix)
        return
    for index in range(node.width):
        yield from _places(graphs, node.child(index), f"{prefix}.{index}" if prefix else str(index))


@pytest.mark.parametrize(
    ("written", "place", "after"),
    [
        (".", "0", set()),
        ("c(3*.)", "1", {"2"}),
        ("g(3*.)", "1", set()),
        ("k(3*.)", "0", {"2"}),
        ("k(3*.)", "2", set()),
        ("c(.,g(2*.),.)", "0", {"1.0", "1.1", "2"}),
        ("c(.,g(2*.),.)", "1.0", {"2"}),
        ("k(2*c(2*.),c(2*.))", "0.0", {"0.1", "2.0", "2.1"}),
        ("k(k(2*.),.,.)", "0.0", {"0.1", "2"}),
        ("k[[],[0],[1],[]](5*.)", "0", {"1", "2", "4"}),
        ("k[[],[0],[1],[]](5*.)", "3", {"4"}),
    ],
)
def test_what_comes_after_a_step(written: str, place: str, after: set[str]) -> None:
    assert _after(written, place) == after


def test_what_a_step_has_replaced_itself_by_is_a_part_of_it() -> None:
    below = {"at1": "k(3*.)"}
    assert _after("c(3*.)", "0", **below) == {"1", "1.0", "1.1", "1.2", "2"}
    assert _after("c(3*.)", "1", **below) == {"1.0", "1.1", "1.2", "2"}
    assert _after("c(3*.)", "1.0", **below) == {"1.2", "2"}
    assert _after("c(3*.)", "2", **below) == set()
