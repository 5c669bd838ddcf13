"""What a file of jobs asks for, checked: each job with all it needs to run, or all that is wrong with the file."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agentlink.units import checked_name, shown
from workflows.batch_document import Document, Problem, read_document
from workflows.batch_fields import READERS
from workflows.errors import WorkflowError

TOP_FIELDS = ("keep_going", "jobs")
JOBS_MAX = 10_000
# What is no file of jobs at all has an error in each line.
_SHOWN_MAX = 20
_PLACEHOLDER = re.compile(r"(?<!\$)\{(\w+)\}", re.ASCII)


class BatchInvalid(WorkflowError):
    """A file of jobs can't be run; nothing was started."""

    def __init__(self, file: str, problems: list[str]) -> None:
        super().__init__(file, problems)
        self.file, self.problems = file, problems

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return f"{self.file}: {self.problems[0]}"
        more = len(self.problems) - _SHOWN_MAX
        lines = [*self.problems[:_SHOWN_MAX], *([f"and {more} more"] if more > 0 else [])]
        return "\n  ".join([f"{self.file} has {len(self.problems)} errors:", *lines])


@dataclass(kw_only=True)
class Job:
    """One command to run. `needs` are the places, in the plan, of the jobs that have to succeed first."""

    name: str
    command: list[str] | str
    needs: list[int] = field(default_factory=list)
    memory_bytes: int | None = None
    cpu_cores: float | None = None
    timeout_s: float | None = None
    retries: int = 0
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class _Declared:
    """A job as the file has it, read as far as it makes sense; of a matrix, all its jobs."""

    needs: list[str] = field(default_factory=list)
    matrix: dict[str, list[str]] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)


def read_plan(file: str) -> dict[str, Any]:
    """The plan of a file: itself, its folder, `keep_going`, and its `jobs` as dictionaries.

    Raises:
        BatchInvalid: with all that is wrong, line by line.
    """
    try:
        document = read_document(Path(file))
    except OSError as error:
        raise BatchInvalid(file, [error.strerror or str(error)]) from error
    except UnicodeDecodeError as error:
        raise BatchInvalid(file, ["it is no text in UTF-8"]) from error
    jobs = plan_jobs(document)
    if document.problems:
        raise BatchInvalid(file, [str(problem) for problem in sorted(set(document.problems))])
    keep_going = document.values.get("keep_going", False)
    folder = str(Path(file).parent)
    return {"file": file, "folder": folder, "keep_going": keep_going, "jobs": [asdict(job) for job in jobs]}


def plan_jobs(document: Document) -> list[Job]:
    """All jobs, in the order of the file; what is wrong goes to the document's problems."""
    problems, values = document.problems, document.values
    _unknown(document, (), values, TOP_FIELDS)
    if not isinstance(values.get("keep_going", False), bool):
        problems.append(Problem(document.line("keep_going"), "want keep_going = true or false"))
    tables = values.get("jobs", {})
    if not isinstance(tables, dict):
        problems.append(Problem(document.line("jobs"), "want a table [jobs.name] for each job"))
        return []
    if not tables and not problems:
        problems.append(Problem(1, 'there is no job in it; write [jobs.name] and below it command = "…"'))
    declared = {name: _declared(document, name, table) for name, table in tables.items()}
    jobs = [job for one in declared.values() for job in one.jobs]
    if len(jobs) > JOBS_MAX:
        problems.append(Problem(1, f"there are {len(jobs)} jobs, and {JOBS_MAX} is the most"))
        return []
    places: dict[str, list[int]] = {}
    for place, (name, job) in enumerate((name, job) for name, one in declared.items() for job in one.jobs):
        if job.name != name and job.name in declared:
            problems.append(Problem(document.line("jobs", job.name), f"{job.name!r} is a job of {name!r} too"))
        for each in {name, job.name}:
            places.setdefault(each, []).append(place)
    _connect(document, declared, places)
    return jobs


def _declared(document: Document, name: str, table: Any) -> _Declared:
    def wrong(what: str, *field_: str) -> None:
        document.problems.append(Problem(document.line("jobs", name, *field_), f"{name}: {what}"))

    try:
        checked_name(name)
    except ValueError as error:
        wrong(str(error))
    if not isinstance(table, dict):
        wrong(f"want a table with a command, got {shown(table)}")
        return _Declared()
    _unknown(document, ("jobs", name), table, tuple(READERS))
    read: dict[str, Any] = {}
    for field_, reader in READERS.items():
        if field_ in table:
            try:
                read[field_] = reader(table[field_])
            except ValueError as error:
                wrong(f"{field_}: {error}", field_)
    if "command" not in table and ("jobs", name, "command") not in document.unread:
        wrong("it has no command")
    one = _Declared(needs=read.get("needs", []), matrix=read.get("matrix", {}))
    common = {
        "memory_bytes": read.get("memory"),
        "cpu_cores": read.get("cpu"),
        "timeout_s": read.get("timeout"),
        "retries": read.get("retries", 0),
    }
    for values in itertools.islice(_combinations(one.matrix), JOBS_MAX + 1):
        env = {variable: _filled(text, values) for variable, text in read.get("env", {}).items()}
        one.jobs.append(
            Job(
                name=combined_name(name, values),
                command=_filled(read.get("command", ""), values),
                env=dict(values) | env,
                **common,
            )
        )
    return one


def _unknown(document: Document, path: tuple[str, ...], table: Mapping[str, Any], known: Iterable[str]) -> None:
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
            whose = f"{path[-1]}: " if path else ""
            document.problems.append(Problem(document.line(*path, name), f"{whose}unknown field {name!r}{hint}"))


def _connect(document: Document, declared: Mapping[str, _Declared], places: Mapping[str, list[int]]) -> None:
    """Find the jobs that others need, and circles among them."""
    owners = {job.name: name for name, one in declared.items() for job in one.jobs} | {name: name for name in declared}
    edges: dict[str, list[str]] = {name: [] for name in declared}
    for name, one in declared.items():
        line = document.line("jobs", name, "needs")
        for need in one.needs:
            if need not in places:
                near = difflib.get_close_matches(need, list(places), n=1) if len(places) < 1000 else []
                hint = f"; did you mean {near[0]!r}?" if near else ""
                document.problems.append(Problem(line, f"{name}: it needs {need!r}, and there is no such job{hint}"))
            else:
                edges[name].append(owners[need])
        needed = sorted({place for need in one.needs for place in places.get(need, [])})
        for job in one.jobs:
            job.needs = needed
    for circle in _circles(edges):
        line, words = document.line("jobs", circle[0], "needs"), " needs ".join(map(repr, [*circle, circle[0]]))
        document.problems.append(Problem(line, f"jobs wait for each other: {words}"))


def _circles(edges: Mapping[str, list[str]]) -> list[list[str]]:
    """A circle for each set of jobs that can't start for one another's sake, found in the order of the file."""
    found: list[list[str]] = []
    state: dict[str, str] = {}
    for start in edges:
        way: list[str] = []
        open_ = [iter([start])]
        while open_:
            name = next(open_[-1], None)
            if name is None:
                open_.pop()
                if way:
                    state[way.pop()] = "done"
            elif state.get(name) == "on the way":
                found.append(way[way.index(name) :])
            elif name not in state:
                state[name] = "on the way"
                way.append(name)
                open_.append(iter(edges[name]))
    return found


def _combinations(matrix: Mapping[str, list[str]]) -> Iterable[dict[str, str]]:
    for values in itertools.product(*matrix.values()):
        yield dict(zip(matrix, values, strict=True))


def combined_name(name: str, values: Mapping[str, str]) -> str:
    """`test[python=3.12,os=linux]`; the name itself without values."""
    return f"{name}[{','.join(f'{key}={value}' for key, value in values.items())}]" if values else name


def _filled(text: Any, values: Mapping[str, str]) -> Any:
    """`{a}` replaced by the value of a; a shell's `${a}` is the shell's, and finds it in the environment."""
    if isinstance(text, list):
        return [_filled(word, values) for word in text]
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text)
