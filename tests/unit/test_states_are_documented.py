"""The states in the documentation are those in the code: every arrow, and no other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from workflows.states import RUN_RESETS, RUN_TRANSITIONS, STEP_RESETS, STEP_TRANSITIONS

PAGE = Path(__file__).parents[2] / "docs" / "how_it_works.md"
_ROW = re.compile(r"^\| ([a-z]) \| ([A-Z]+) → ([A-Z]+) \| [^|]+ \| [^|]+ \|$", re.MULTILINE)


def _documented(what: str) -> set[tuple[str, str]]:
    table = PAGE.read_text().partition(f"| | {what} | when | repaired by |")[2].partition("\n\n")[0]
    arrows = [(before, after) for _, before, after in _ROW.findall(table)]
    assert len(arrows) == len(set(arrows)) == table.count("\n|") - 1  # no row twice, and none that is not understood
    return set(arrows)


def _of_code(transitions: Mapping[str, frozenset[str]], resets: Mapping[str, str]) -> set[tuple[str, str]]:
    arrows = {(str(before), str(after)) for before, all_after in transitions.items() for after in all_after}
    return arrows | {(str(before), str(after)) for before, after in resets.items()}


def test_each_arrow_of_a_run_is_documented() -> None:
    assert _documented("run") == _of_code(RUN_TRANSITIONS, RUN_RESETS)


def test_each_arrow_of_a_step_is_documented() -> None:
    assert _documented("step") == _of_code(STEP_TRANSITIONS, STEP_RESETS)


def test_each_letter_of_the_picture_is_explained() -> None:
    picture = PAGE.read_text().partition("## States")[2].split("```")[1]
    letters = set(re.findall(r"(?<![A-Za-z])([a-z])(?![A-Za-z])", picture))
    assert letters == {letter for letter, _, _ in _ROW.findall(PAGE.read_text())}
