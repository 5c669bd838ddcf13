"""How commands print: pages for people with their tables, or JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence

import click
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

# Piped into a file or a pager there is no width to fit into, and an id is to be copied whole.
_PIPED_WIDTH = 200
# In a narrower terminal a line goes on in the next: it is read with some trouble there, and a cut one not at all.
_PAGE_WIDTH_MIN = 80
_LAST_WIDTH_MIN = 10
_BETWEEN = 2

json_option = click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")


def print_json(facts: object) -> None:
    """Print everything as JSON."""
    click.echo(json.dumps(facts, indent=2))


def live_console(*, stderr: bool = False) -> Console:
    """Standard output, or that for errors, for what is drawn again and again: as wide as the terminal."""
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(width=None if is_terminal else _PIPED_WIDTH, stderr=stderr, highlight=False)


def page_console() -> Console:
    """Standard output for pages."""
    console = live_console()
    console.width = max(console.width, _PAGE_WIDTH_MIN)
    return console


def print_list(console: Console, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table of one line a row. The last column has the room that is left; the others are never cut."""
    cells = [[*row[:-1], " ".join(row[-1].split())] for row in rows]
    fixed = sum(max(map(cell_len, column)) + _BETWEEN for column in list(zip(titles, *cells, strict=True))[:-1])
    table = Table(box=None, pad_edge=False, expand=True)
    for title in titles[:-1]:
        table.add_column(title, no_wrap=True)
    table.add_column(titles[-1], no_wrap=True, overflow="ellipsis", ratio=1)
    for row in cells:
        table.add_row(*map(escape, row))
    width, console.width = console.width, max(console.width, fixed + _LAST_WIDTH_MIN)
    console.print(table)
    console.width = width
