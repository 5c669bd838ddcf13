"""A file of jobs as values that know their lines: TOML or YAML.

What is wrong with the text is found all at once, like what is wrong with the jobs: each statement of a TOML file is
read by itself.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Names = tuple[str, ...]

# What matters for where a statement ends: texts of all four kinds, comments, brackets, the ends of lines.
_PIECE = re.compile(
    r'"""(?:\\.|[^\\])*?"""|\'\'\'.*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*|[\[\]{}\n]|[^\[\]{}\n"\'#]+|.',
    re.DOTALL,
)
_NAME = re.compile(r"[\w-]+(?=\s*=)")
_AT_LINE = re.compile(r" \(at (?:line \d+, column \d+|end of document)\)$")


@dataclass(frozen=True, order=True)
class Problem:
    """What is wrong, and in which line."""

    line: int
    what: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.what}"


@dataclass
class Document:
    """Tables in tables, the line of each name in them, and what is wrong with the text."""

    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[Names, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    #: Names that are there, and whose values can't be read.
    unread: set[Names] = field(default_factory=set)

    def line(self, *path: str) -> int:
        """Where a name stands, or the nearest one around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def put(self, path: Names, value: Any, line: int) -> None:
        """Add a value, unless there is one."""
        table = self.values
        for name in path[:-1]:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                self.problems.append(Problem(line, f"{name!r} is no table, see line {self.line(*path)}"))
                return
        if path[-1] in table:
            self.problems.append(Problem(line, f"{path[-1]!r} is there twice, first in line {self.line(*path)}"))
            return
        table[path[-1]] = value
        self._note(path, value, line)

    def open(self, path: Names, line: int) -> None:
        """Add a table, which may be there: its own tables may have come before it."""
        if not isinstance(_at(self.values, path, {}), dict):
            self.problems.append(Problem(line, f"{path[-1]!r} is there twice, first in line {self.line(*path)}"))
        elif _at(self.values, path) is None:
            self.put(path, {}, line)
        self.lines[path] = line

    def _note(self, path: Names, value: Any, line: int) -> None:
        for end in range(1, len(path) + 1):
            self.lines.setdefault(path[:end], line)
        if isinstance(value, dict):
            for name, inner in value.items():
                self._note((*path, str(name)), inner, line)


def read_toml(text: str) -> Document:
    """A TOML file, but for arrays of tables."""
    document, heads = Document(), set[Names]()
    table: Names | None = ()
    for line, statement in _statements(text):
        try:
            read = tomllib.loads(statement)
        except tomllib.TOMLDecodeError as error:
            what = _AT_LINE.sub("", str(error))
            if statement.startswith("["):
                what, table = (
                    f'{what}; a name with spaces needs quotes: [jobs."a b"]',
                    None,
                )
            elif table is not None and (name := _NAME.match(statement)):
                document.unread.add((*table, name[0]))
            document.problems.append(Problem(line, what))
            continue
        if statement.startswith("[["):
            document.problems.append(Problem(line, "want a table like [jobs.name], not a list of tables"))
            table = None
        elif statement.startswith("["):
            table = _path(read)
            if table in heads:
                first = document.line(*table)
                document.problems.append(Problem(line, f"{table[-1]!r} is there twice, first in line {first}"))
                table = None  # what it holds is not to be mixed with the first one's
            else:
                heads.add(table)
                document.open(table, line)
        elif table is not None:
            path = _path(read)
            document.put((*table, *path), _at(read, path), line)
    if not document.problems:
        try:
            tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:  # what no statement shows by itself
            at = re.search(r"at line (\d+)", str(error))
            document.problems.append(Problem(int(at[1]) if at else 1, str(error)))
    return document


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """The tables' heads and the assignments, each with its line."""
    line, begun_in, depth, statement = 1, 1, 0, ""
    for match in _PIECE.finditer(text.replace("\r\n", "\n")):
        piece = match[0]
        if not statement.strip():
            begun_in = line
        if piece == "\n" and depth <= 0:
            if statement.strip():
                yield begun_in, statement.strip()
            statement, depth = "", 0
        elif not piece.startswith("#"):
            depth += (piece in "[{") - (piece in "]}")
            statement += piece
        line += piece.count("\n")
    if statement.strip():
        yield begun_in, statement.strip()


def _path(read: dict[str, Any]) -> Names:
    """The names before the `=` or in the brackets, and on into inline tables of one entry."""
    path: list[str] = []
    inner: Any = read
    while isinstance(inner, dict) and len(inner) == 1:
        ((name, inner),) = inner.items()
        path.append(name)
    return tuple(path)


def _at(values: dict[str, Any], path: Names, otherwise: Any = None) -> Any:
    value: Any = values
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return otherwise
        value = value[name]
    return value


def read_yaml(text: str) -> Document:
    """A YAML file."""
    import yaml  # type: ignore[import-untyped]  # few read one

    document, loader = Document(), yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            _add_mapping(document, (), node, loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        document.problems.append(Problem(mark.line + 1 if mark else 1, getattr(error, "problem", None) or str(error)))
    finally:
        loader.dispose()
    return document


def _add_mapping(document: Document, path: Names, node: Any, loader: Any) -> None:
    if node.id != "mapping":
        what = "want names and values" if not path else f"{' '.join(path)}: want names and values"
        document.problems.append(Problem(node.start_mark.line + 1, what))
        return
    for key, value in node.value:
        name, line = str(loader.construct_object(key, deep=True)), key.start_mark.line + 1
        if value.id == "mapping":
            document.put((*path, name), {}, line)
            _add_mapping(document, (*path, name), value, loader)
        else:
            document.put((*path, name), loader.construct_object(value, deep=True), line)


def read_document(file: Path) -> Document:
    """A file, by the end of its name.

    Raises:
        OSError, UnicodeDecodeError: it can't be read.
    """
    text = file.read_text(encoding="utf-8-sig")
    return read_yaml(text) if file.suffix.lower() in (".yaml", ".yml") else read_toml(text)
