"""A file of jobs: all that is wrong with it at once, each with its line, and what is made of one that is right."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from workflows import CallRefused
from workflows.batch import prepare, show
from workflows.batch_plan import BatchInvalid, read_plan


def plan(folder: Path, text: str, name: str = "jobs.toml") -> dict[str, Any]:
    file = folder / name
    file.write_text(text)
    return read_plan(str(file))


def problems(folder: Path, text: str, name: str = "jobs.toml") -> list[str]:
    with pytest.raises(BatchInvalid) as caught:
        plan(folder, text, name)
    return caught.value.problems


def test_everything_that_is_wrong_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    text = """# "a comment
keep_goin = true

[jobs.fetch]
commnd = "curl"
needs = ["clean", "b c"]

[jobs."b c"]
command = ["ls"]
memory = "huge"
cpu = 0
timeout = \"\"\"
5q\"\"\"
needs = [
  "count",  # [
]

[jobs.count]
command = "wc"
retries = 1.5
needs = ["b c"]

[jobs.fetch]
command = "again"

[jobs.open]
command = "ls
env = { A = [1] }
"""
    assert problems(tmp_path, text) == [
        "line 2: unknown field 'keep_goin'; did you mean keep_going?",
        "line 4: fetch: it has no command",
        "line 5: fetch: unknown field 'commnd'; did you mean command?",
        "line 6: fetch: it needs 'clean', and there is no such job",
        "line 10: b c: memory: want a size like 8GB or 512MiB, got 'huge'",
        "line 11: b c: cpu: want a number of cores above 0, got 0",
        "line 12: b c: timeout: want a duration like 30s, 250ms, 5m, 2h or 7d, got '5q'",
        "line 14: jobs wait for each other: 'b c' needs 'count' needs 'b c'",
        "line 20: count: retries: want a whole number from 0 to 100, got 1.5",
        "line 23: 'fetch' is there twice, first in line 4",
        "line 27: Unterminated string",
        "line 28: open: env: want a text, a number or true or false, got [1]",
    ]


def test_of_very_many_errors_the_first_are_shown(tmp_path: Path) -> None:
    """Of what is no file of jobs at all, each line is one."""
    with pytest.raises(BatchInvalid) as caught:
        plan(tmp_path, "words\n" * 100)
    head, *lines = str(caught.value).splitlines()
    assert head.endswith("jobs.toml has 100 errors:")
    assert (len(lines), lines[-1]) == (21, "  and 80 more")
    assert len(caught.value.problems) == 100


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", 'line 1: there is no job in it; write [jobs.name] and below it command = "…"'),
        ("# nothing\n", 'line 1: there is no job in it; write [jobs.name] and below it command = "…"'),
        ("jobs = 3", "line 1: want a table [jobs.name] for each job"),
        ("[jobs]\na = 3", "line 2: a: want a table with a command, got 3"),
        ("keep_going = 1\n[jobs.a]\ncommand = 'x'", "line 1: want keep_going = true or false"),
        ("[[jobs]]\nname = 'x'", "line 1: want a table like [jobs.name], not a list of tables"),
        ("[jobs.a]\ncommand = 'x'\n[jobs.b c]\ncommand = 'x'",
         "line 3: Expected ']' at the end of a table declaration; a name with spaces needs quotes: [jobs.\"a b\"]"),
        ("[jobs.a]\ncommand = ''",
         'line 2: a: command: want a text for the shell or a list like ["ls", "-l"], got \'\''),
        ("[jobs.a]\ncommand = ['']", "line 2: a: command: want a list with the program's name first, got ['']"),
        ("[jobs.a]\ncommand = ['x', 1]", "line 2: a: command: item 1 must be a text, got 1"),
        ("[jobs.a]\ncommand = 'x'\ncommand = 'y'", "line 3: 'command' is there twice, first in line 2"),
        ("[jobs.a]\ncommand = 'x'\nneeds = 'b'", "line 3: a: needs: want a list of jobs' names, got 'b'"),
        ("[jobs.a]\ncommand = 'x'\nneeds = ['a']", "line 3: jobs wait for each other: 'a' needs 'a'"),
        ("[jobs.a]\ncommand = 'x'\n[jobs.b]\ncommand = 'x'\nneeds = ['a', 'a']",
         "line 5: b: needs: 'a' is there twice"),
        ("[jobs.build]\ncommand = 'x'\n[jobs.b]\ncommand = 'x'\nneeds = ['biuld']",
         "line 5: b: it needs 'biuld', and there is no such job; did you mean 'build'?"),
        ("[jobs.a]\ncommand = 'x'\nenv = { 'A=B' = 1 }", "line 3: a: env: the name of a variable can't be 'A=B'"),
        ("[jobs.a]\ncommand = 'x'\nmatrix = { 'b-c' = [1] }",
         "line 3: a: matrix: want names of letters, digits and _, since they become variables, got 'b-c'"),
        ("[jobs.a]\ncommand = 'x'\nmatrix = { b = [] }",
         "line 3: a: matrix: want a table of lists like { python = [\"3.11\", \"3.12\"] }, got {'b': []}"),
        ("[jobs.a]\ncommand = 'x'\nmatrix = { b = [1, '1'] }", "line 3: a: matrix: b has a value twice"),
        ("[jobs.a]\ncommand = 'x'\nmatrix = { b = [1] }\n[jobs.'a[b=1]']\ncommand = 'x'",
         "line 4: 'a[b=1]' is a job of 'a' too"),
        ("[jobs.' a']\ncommand = 'x'", "line 1:  a: want a name of 1 to 100 printable characters, got ' a'"),
        ("[jobs.a]\ncommand = 'x'\nmemory = 0", "line 3: a: memory: want a size above 0, got 0"),
        ("[jobs.a]\ncommand = 'x'\ntimeout = '0s'",
         "line 3: a: timeout: want a time above 0 and of at most 365d, got '0s'"),
        (f"[jobs.a]\ncommand = 'x'\nmatrix = {{ a = {list(range(101))}, b = {list(range(100))} }}",
         "line 1: there are 10001 jobs, and 10000 is the most"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_words(tmp_path: Path, text: str, problem: str) -> None:
    assert problems(tmp_path, text) == [problem]


def test_a_job_has_what_the_file_says(tmp_path: Path) -> None:
    text = """
keep_going = true
jobs.first.command = "make"
[jobs."the second"]
command = ["echo", "{a} ${a}"]
needs = ["first"]
memory = "1.5GB"
cpu = 2
timeout = "5m"
retries = 3
env.PATH_ = "x"
env.N = 1
env.YES = true
"""
    made = plan(tmp_path, text)
    assert made == {
        "file": str(tmp_path / "jobs.toml"),
        "folder": str(tmp_path),
        "keep_going": True,
        "jobs": [
            {"name": "first", "command": "make", "needs": [], "memory_bytes": None, "cpu_cores": None,
             "timeout_s": None, "retries": 0, "env": {}},
            {"name": "the second", "command": ["echo", "{a} ${a}"], "needs": [0], "memory_bytes": 1_500_000_000,
             "cpu_cores": 2.0, "timeout_s": 300.0, "retries": 3, "env": {"PATH_": "x", "N": "1", "YES": "true"}},
        ],
    }  # fmt: skip


def test_a_matrix_makes_a_job_of_each_combination(tmp_path: Path) -> None:
    text = """
[jobs.all]
command = "true"
needs = ["test"]
[jobs.one]
command = "true"
needs = ["test[py=3.12,fast=true]"]
[jobs.test]
command = "py{py} {other} {fast} ${py}"
env = { NAME = "n-{py}", fast = "mine" }
matrix = { py = ["3.11", "3.12"], fast = [true] }
"""
    all_, one, *tests = plan(tmp_path, text)["jobs"]
    assert (all_["needs"], one["needs"]) == ([2, 3], [3])
    assert [test["name"] for test in tests] == ["test[py=3.11,fast=true]", "test[py=3.12,fast=true]"]
    assert tests[0]["command"] == "py3.11 {other} true ${py}"
    assert tests[0]["env"] == {"py": "3.11", "fast": "mine", "NAME": "n-3.11"}


def test_tables_may_come_in_any_order_and_texts_may_look_like_tables(tmp_path: Path) -> None:
    text = "[jobs.a.env]\nA = \"1\"\n[jobs.a]\ncommand = '''\n[jobs.a]\n# {\n'''\n[jobs.b]\r\ncommand = \"}\\\"]#\"\r\n"
    a, b = plan(tmp_path, text)["jobs"]
    assert (a["command"], a["env"], b["command"]) == ("[jobs.a]\n# {\n", {"A": "1"}, '}"]#')


def test_what_no_statement_shows_by_itself_is_found_too(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "[jobs.a]\ncommand = 'x'\nenv = { A = 1 }\nenv.B = 2\n")
    assert problem.startswith("line 4: ")


def test_a_thousand_jobs_are_planned_in_less_than_a_second(tmp_path: Path) -> None:
    text = "".join(
        f'[jobs.j{number}]\ncommand = "echo {number}"\n'
        f"needs = {[f'j{need}' for need in range(max(0, number - 5), number)]}\n"
        for number in range(1000)
    )
    began_at = time.monotonic()
    jobs = plan(tmp_path, text)["jobs"]
    assert time.monotonic() - began_at < 1
    assert (len(jobs), jobs[-1]["needs"]) == (1000, [994, 995, 996, 997, 998])


def test_a_file_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BatchInvalid, match=f"{tmp_path}/gone.toml: No such file or directory"):
        prepare("gone.toml")
    (tmp_path / "image.toml").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(BatchInvalid, match="no text in UTF-8"):
        prepare("image.toml")
    for file in (None, "", "a\0b", b"x"):
        with pytest.raises(CallRefused, match="want a file of jobs"):
            prepare(file)


def test_yaml_is_read_too(tmp_path: Path) -> None:
    text = "jobs:\n  a b:\n    command: [ls]\n    env: {N: 1}\n  c:\n    command: make\n    needs: [a b]\n"
    a, c = plan(tmp_path, text, "jobs.yaml")["jobs"]
    assert (a["name"], a["command"], a["env"], c["needs"]) == ("a b", ["ls"], {"N": "1"}, [0])
    text = "jobs:\n  a:\n    commnd: ls\n  c:\n    command: make\n    retries: x\n  a: {}\n"
    assert problems(tmp_path, text, "jobs.yml")[1:] == [
        "line 3: a: unknown field 'commnd'; did you mean command?",
        "line 6: c: retries: want a whole number from 0 to 100, got 'x'",
        "line 7: 'a' is there twice, first in line 2",
    ]
    assert problems(tmp_path, "jobs: [", "jobs.yaml")[0].startswith("line 1: ")


def test_the_answer_is_a_table() -> None:
    one = {"name": "a|b", "exit_code": 0, "seconds": 0.25, "attempts": 2, "output": "/x/stdout", "errors": None}
    text = show({"file": "/y/jobs.toml", "seconds": 1, "jobs": [one, one | {"name": "c", "output": None}]})
    assert text.splitlines() == [
        "| job | exit code | time | attempts | output |",
        "|---|---:|---:|---:|---|",
        "| a\\|b | 0 | 250 ms | 2 | `stdout` |",
        "| c | 0 | 250 ms | 2 | none |",
        "",
        "2 jobs of `/y/jobs.toml`",
        "",
        "Output below  ",
        "`/x`",
    ]
