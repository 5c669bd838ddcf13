"""Forks and what a process does meanwhile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_FORKS = """
import os, threading, time
from agentlink.processes import forks_wait

done = []
inside = threading.Event()

def import_something():
    with forks_wait():
        inside.set()
        time.sleep(0.2)
        done.append("imported")

thread = threading.Thread(target=import_something)
thread.start()
inside.wait()
if (pid := os.fork()) == 0:
    with forks_wait():  # of the child's own
        os._exit(0 if done == ["imported"] else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""

_WORKER = """
import sys
import celery.apps.worker, celery.concurrency.prefork
import tasks, workflows
from agentlink.broker import sweep_step

sweep_step._sweeper(tasks.app)
loaded = {"fsspec", "valkey", "httpx", "rich"} & sys.modules.keys()
raise SystemExit(", ".join(loaded) or 0)
"""


def test_a_fork_waits_for_the_import_in_another_thread() -> None:
    assert subprocess.run([sys.executable, "-c", _FORKS], timeout=60).returncode == 0


def test_a_worker_does_not_load_what_few_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no large value was ever kept."""
    monkeypatch.setenv("AGENTLINK_HOME", str(tmp_path / "home"))
    done = subprocess.run([sys.executable, "-c", _WORKER], timeout=60, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")
