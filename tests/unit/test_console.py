"""Pages for people: nothing they may want to copy is cut, however narrow the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from agentlink.console import print_list

TITLES = ("run", "state", "what")
ROW = ("8d7e36aa-0000-4b52-87eb-33add5271ebc", "SUCCEEDED", "first line\nsecond [line] " + "and so on " * 20)


def printed(width: int) -> list[str]:
    page = io.StringIO()
    print_list(Console(file=page, width=width), TITLES, [ROW, ("short", "RUNNING", "")])
    return page.getvalue().splitlines()


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_a_row_is_one_line_and_all_but_its_last_column_is_whole(width: int) -> None:
    titles, row, short = printed(width)
    assert titles.split() == list(TITLES)
    assert row.startswith(f"{ROW[0]}  {ROW[1]}  first")
    assert short.split() == ["short", "RUNNING"]


def test_the_last_column_has_the_room_that_is_left() -> None:
    row = printed(80)[1]
    assert row.endswith("first line second [line] and s…")
    assert len(row) == 80


def test_the_console_is_as_wide_afterwards_as_before() -> None:
    console = Console(file=io.StringIO(), width=30)
    print_list(console, TITLES, [ROW])
    assert console.width == 30
