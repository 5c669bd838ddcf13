"""The graph of a run: how its steps hang together, in a few characters, and what comes after a step.

A canvas is written as it is nested, with equal neighbours counted: `.` is a step, `c(…)` a chain, `g(…)` a group,
`k(…)` a chord whose last part is its body, `k[[],[0]](…)` one whose second part needs the first. `c(.,k(1000*.,.))` has
1,002 steps. A step's place says the same way in numbers: `1.1000` is the chord's body.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from celery.canvas import Signature, _chain, _chord, group

_TOKEN = re.compile(r"(\d+)\*|([ckg])(\[[\d,\[\]]*\])?\(|([.,)])")

Place = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A part of a graph: a chain `c`, a group `g`, a chord `k`, or a step `.`; equal children are counted together."""

    kind: str
    children: tuple[tuple[int, Node], ...] = ()
    #: Of each child but the last, those it needs; empty where none needs another.
    needs: tuple[tuple[int, ...], ...] = ()

    def child(self, index: int) -> Node:
        """The child at a place."""
        for count, node in self.children:
            if index < count:
                return node
            index -= count
        raise IndexError(index)

    @property
    def width(self) -> int:
        """How many children it has."""
        return sum(count for count, _ in self.children)


def children(node: Signature) -> list[Signature]:
    """What a canvas consists of, in the order of places; nothing for a step."""
    if isinstance(node, _chord):
        return [*(node.tasks.tasks if isinstance(node.tasks, group) else node.tasks), node.body]
    return list(node.tasks) if isinstance(node, (_chain, group)) else []


def notation(node: Signature) -> str:
    """How a canvas is written."""
    if not isinstance(node, (_chain, _chord, group)):
        return "."
    parts = [
        f"{count}*{part}" if (count := sum(1 for _ in same)) > 1 else part
        for part, same in groupby(map(notation, children(node)))
    ]
    kind = "k" if isinstance(node, _chord) else "c" if isinstance(node, _chain) else "g"
    needs = json.dumps(node.kwargs["needs"], separators=(",", ":")) if node.kwargs.get("needs") and kind == "k" else ""
    return f"{kind}{needs}({','.join(parts)})"


def parse(text: str) -> Node:
    """The graph that was written so."""
    tokens = _TOKEN.finditer(text)
    return _parse(next(tokens), tokens)


def _parse(token: re.Match[str], tokens: Iterator[re.Match[str]]) -> Node:
    if token[4] == ".":
        return Node(".")
    parts: list[tuple[int, Node]] = []
    for following in tokens:
        if following[4] == ")":
            break
        if following[4] == ",":
            continue
        if following[1]:
            parts.append((int(following[1]), _parse(next(tokens), tokens)))
        else:
            parts.append((1, _parse(following, tokens)))
    needs = tuple(map(tuple, json.loads(token[3]))) if token[3] else ()
    return Node(token[2], tuple(parts), needs)


def comes_after(graphs: Mapping[str, Node], place: Place, other: Place) -> bool:
    """Whether the step at `other` waits for the one at `place`, or is a part of what that has replaced itself by.

    `graphs` are by the places of the steps that have built them: the run's own under the empty one.
    """
    node = graphs[""]
    for depth, (one, two) in enumerate(zip(place, other, strict=False)):
        if node.kind == ".":
            prefix = ".".join(map(str, place[:depth]))
            if prefix not in graphs:
                break  # the canvas is a single step, whose place is 0
            node = graphs[prefix]
        if one != two:
            return _comes_after_in(node, one, two)
        if node.kind != ".":
            node = node.child(one)
    return len(other) > len(place)


def _comes_after_in(node: Node, one: int, two: int) -> bool:
    if node.kind == "c":
        return two > one
    if node.kind == "k" and two == node.width - 1:
        return True
    waiting, seen = [two] if node.needs else [], set[int]()
    while waiting:
        if (child := waiting.pop()) == one:
            return True
        if child not in seen and child < len(node.needs):
            seen.add(child)
            waiting += node.needs[child]
    return False
