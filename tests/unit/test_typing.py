"""What a type checker says of calls: it knows the parameters, and what a direct call returns."""

from __future__ import annotations

import re
from pathlib import Path

import mypy.api
import pytest

import agentlink
import resource_guard
import tasks
import workflows

REPOSITORY = Path(__file__).parents[2]

SAMPLE = """
from typing import Any

from tasks import BaseTask, task
from workflows import research, workflow
from workflows.base import WorkflowTask

@task
def plain(x: int, *, unit: str = "") -> float:
    return x / 2

@task(memory="1GB", retry_for=OSError)
def declared(x: int) -> list[str]:
    return []

@task(bind=True, cpu=2)
def bound(self: BaseTask, x: int) -> str:
    return f"{self.name} {x}"

@workflow
def flow(paths: list[str], *, top: int = 3) -> Any:
    return plain.s(1)

@workflow(name="another")
def named(number: int) -> Any:
    return plain.si(1, unit="m") | declared.s()

class Written(BaseTask):
    def run(self, x: int) -> int:
        return x

def call_any(task: BaseTask, flow: WorkflowTask) -> None:
    task.delay(1, unit=2)
    flow.delay(1)

# right
plain.delay(1, unit="m")
declared.delay(x=1)
bound.delay(1)
flow.delay(["docs"], top=2)
named.delay(1)
research.delay(["docs"], "why?", top=3)
plain.apply_async((1,), {"unit": "m"}, countdown=3)
plain.s(unit="m")
Written().delay(1)
call_any(plain, flow)

# wrong
plain.delay("1")  # error: incompatible type "str"; expected "int"
plain.delay(1, "m")  # error: Too many positional arguments
plain.delay(1, uint="m")  # error: Unexpected keyword argument "uint"
plain.delay()  # error: Missing positional argument "x"
plain("1")  # error: incompatible type "str"; expected "int"
declared.delay(1, 2)  # error: Too many arguments
bound.delay(1, 2)  # error: Too many arguments
bound.delay("1")  # error: incompatible type "str"; expected "int"
flow.delay("docs")  # error: incompatible type "str"; expected "list[str]"
flow.delay(["docs"], tpo=2)  # error: Unexpected keyword argument "tpo"
named.delay()  # error: Missing positional argument "number"
research.delay(["docs"], "why?", top="3")  # error: incompatible type "str"; expected "int"
research.delay(["docs"])  # error: Missing positional argument "question"

reveal_type(plain)  # note: "tasks.base.BaseTask[[x: int, *, unit: str =], float]"
reveal_type(bound)  # note: "tasks.base.BaseTask[[x: int], str]"
reveal_type(flow)  # note: "workflows.base.WorkflowTask[[paths: list[str], *, top: int =]]"
reveal_type(plain(1))  # note: "float"
reveal_type(declared(1))  # note: "list[str]"
reveal_type(bound(1))  # note: "str"
reveal_type(flow.delay(["docs"]))  # note: "workflows.run.WorkflowRun"
"""


def test_wrong_calls_are_reported_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = tmp_path / "sample.py"
    sample.write_text(SAMPLE)
    monkeypatch.setenv("MYPYPATH", str(REPOSITORY))
    options = ["--config-file", str(REPOSITORY / "pyproject.toml"), "--cache-dir", str(tmp_path / "cache")]
    said, broken, _ = mypy.api.run([*options, "--no-error-summary", "--hide-error-codes", str(sample)])
    assert broken == ""
    reports = re.findall(r"sample\.py:(\d+): (error: .*|note: Revealed type is .*)", said)
    expected = {
        number: re.split(r"# (?=error|note)", line)[1]
        for number, line in enumerate(SAMPLE.splitlines(), start=1)
        if "# error: " in line or "# note: " in line
    }
    assert [int(number) for number, _ in reports] == sorted(expected), said
    for number, report in reports:
        kind, _, what = expected[int(number)].partition(": ")
        assert report.startswith(kind)
        assert what in report


@pytest.mark.parametrize("package", [agentlink, resource_guard, tasks, workflows], ids=lambda package: package.__name__)
def test_a_package_says_that_it_has_types(package: object) -> None:
    folder = Path(str(getattr(package, "__file__", None))).parent
    assert (folder / "py.typed").exists()
