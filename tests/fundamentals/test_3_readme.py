"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from agentlink.settings import load
from tests.integration.system import REPOSITORY, System

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(load(), tmp_path)


def test_calling_a_workflow_from_agent_code(system: System) -> None:
    (system.folder / "notes.txt").write_text("The settings are read once, from the environment.\n")
    done = system.python(BLOCKS[0], timeout_s=60)
    assert done.stderr == ""
    assert "notes.txt 1 " in done.stdout
    assert "report.html" in done.stdout


def test_own_tasks_and_workflows_by_name(system: System) -> None:
    """`agentlink run` in the folder of the module, on a home of its own where nothing runs yet."""
    (system.folder / "mywork.py").write_text(BLOCKS[1])
    (system.folder / "three.txt").write_text("one two three\n")
    (system.folder / "two.txt").write_text("four five\n")
    with tempfile.TemporaryDirectory(prefix="agentlink-") as home:
        done = subprocess.run(
            [sys.executable, "-m", "agentlink", "run", "words", '["three.txt", "two.txt"]'],
            cwd=system.folder, env=system.environment(home=home, imports="mywork"), text=True, capture_output=True,
            timeout=60, check=False,
        )  # fmt: skip
    assert done.stderr == ""
    assert re.search(r"^ *5 *$", done.stdout, re.MULTILINE), done.stdout
    assert done.returncode == 0


def test_a_task_that_tells_what_it_does(system: System) -> None:
    """Called as a function it tells the log."""
    script = "import logging\nlogging.basicConfig(level='DEBUG')\nfrom tasks import task\n"
    done = system.python(f"{script}{BLOCKS[2]}\nwrite(['one', 'two'])")
    assert done.returncode == 0, done.stderr
    assert "100 % wrote page 2" in done.stderr


def test_every_file_it_names_is_there() -> None:
    for path in [*re.findall(r"\]\(([^)#:]+)\)", README), "celeryconfig.py", "agentlink/settings.py"]:
        assert (REPOSITORY / path).exists(), path
