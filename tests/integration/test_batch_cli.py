"""`agentlink run batch FILE` as a person sees it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.own_home import OwnHome, own_home

JOBS = """
[jobs."say hello"]
command = "echo hello > greeting"

[jobs.read]
command = ["cat", "greeting"]
needs = ["say hello"]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnHome]:
    with own_home(tmp_path_factory.mktemp("batch")) as home:
        yield home


def test_the_jobs_of_a_file_are_run_and_shown(home: OwnHome) -> None:
    (home.folder / "jobs.toml").write_text(JOBS)
    answer = home.agentlink("run", "batch", "jobs.toml")
    assert answer.returncode == 0, answer.stderr
    for words in ("job: 2 of 2 done", "say hello", "exit code", "attempts", "2 jobs of ", "SUCCEEDED in "):
        assert words in answer.stdout
    answer = home.agentlink("run", "--json", "batch", "jobs.toml")
    output = json.loads(answer.stdout)["jobs"][1]["output"]
    assert Path(output).read_text() == "hello\n"


def test_what_a_job_makes_has_the_permissions_that_the_user_wants(home: OwnHome) -> None:
    """Also where the worker was started in the background."""
    (home.folder / "mask.toml").write_text("[jobs.mask]\ncommand = 'umask'\n")
    answer = home.agentlink("run", "--json", "batch", "mask.toml")
    output = json.loads(answer.stdout)["jobs"][0]["output"]
    assert Path(output).read_text() == subprocess.check_output(["sh", "-c", "umask"], text=True)


def test_a_wrong_file_starts_nothing_and_a_failed_job_is_named(home: OwnHome) -> None:
    (home.folder / "wrong.toml").write_text("[jobs.a]\ncommand = 'x'\nneeds = ['b']\n[jobs.c]\n")
    answer = home.agentlink("run", "batch", "wrong.toml")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr == (
        f"agentlink: {home.folder}/wrong.toml has 2 errors:\n"
        "  line 3: a: it needs 'b', and there is no such job\n"
        "  line 4: c: it has no command\n"
    )
    (home.folder / "bad.toml").write_text("[jobs.a]\ncommand = 'echo no luck >&2; exit 3'\n")
    answer = home.agentlink("run", "batch", "bad.toml")
    assert answer.returncode == 1
    assert "FAILED: workflows.batch.job: JobFailed: a: " in answer.stdout
    assert "ended with exit status 3, saying 'no luck' (attempt 1); what it said is in " in answer.stdout
