"""A program that a task runs ends with the task, however Celery ends that."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from agentlink.settings import load
from tasks import app
from tasks.command import command
from tasks.command_errors import CommandFailed, CommandTimedOut
from tests.integration.system import System, Worker
from tests.process_tree import alive, pids, tree
from tests.waiting import wait_until

ANSWER_S = 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "pids"


def start_tree(folder: Path, **options: Any) -> tuple[Any, list[int]]:
    """A task that runs a tree, and the tree's process ids. A second attempt of it would end at once."""
    text = tree(folder)
    result = command.apply_async([f"test -e {folder}/again && exit; {text}"], {"shell": True}, **options)
    tree_pids = pids(folder)
    (folder / "again").touch()
    assert alive(tree_pids) == tree_pids
    return result, tree_pids


def pool_process_of(worker: Worker, tree_pids: list[int]) -> int:
    """The worker's pool process that runs the task: the program's reaper is its child."""
    ancestors = [process.pid for process in psutil.Process(tree_pids[0]).parents()]
    (pool_pid,) = set(ancestors) & set(worker.children())
    return pool_pid


def wait_for_the_end(tree_pids: list[int]) -> None:
    wait_until(lambda: not alive(tree_pids), what="the end of the tree")


def test_a_result_is_the_output_and_long_output_is_with_the_run(system: System) -> None:
    system.start_worker()
    short = command.delay(["echo", "hi"])
    answer = short.get(ANSWER_S)
    assert answer == {
        "exit_status": 0,
        "stdout": "hi\n",
        "stderr": "",
        "stdout_file": None,
        "stderr_file": None,
        "duration_s": answer["duration_s"],
    }
    long = command.delay(["seq", "100000"])
    file = Path(long.get(ANSWER_S)["stdout_file"])
    assert file == load().runs_folder / long.id / long.id / "stdout"
    assert file.read_text().endswith("\n100000\n")


def test_errors_reach_the_caller_with_their_facts(system: System) -> None:
    system.start_worker()
    with pytest.raises(CommandFailed, match="ended with exit status 3, saying 'why'") as failed:
        command.delay("echo why >&2; exit 3", shell=True).get(ANSWER_S)
    assert (failed.value.exit_status, failed.value.stderr_tail) == (3, "why\n")
    with pytest.raises(CommandTimedOut) as timed_out:
        command.delay(["sleep", "1000"], timeout="200ms").get(ANSWER_S)
    assert timed_out.value.timeout_s == 0.2


def test_the_soft_time_limit_ends_the_tree(system: System, folder: Path) -> None:
    system.start_worker()
    result, tree_pids = start_tree(folder, soft_time_limit=2)
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(ANSWER_S)
    assert alive(tree_pids) == []


def test_the_hard_time_limit_ends_the_tree(system: System, folder: Path) -> None:
    """Of a pool process that hangs, so that it can't heed the soft limit; Celery counts the hard one from there."""
    worker = system.start_worker()
    result, tree_pids = start_tree(folder, soft_time_limit=2, time_limit=3)
    os.kill(pool_process_of(worker, tree_pids), signal.SIGSTOP)
    with pytest.raises(TimeLimitExceeded):
        result.get(ANSWER_S)
    wait_for_the_end(tree_pids)


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGKILL"])
def test_revoking_with_terminate_ends_the_tree(signal_name: str, system: System, folder: Path) -> None:
    system.start_worker()
    result, tree_pids = start_tree(folder)
    app.control.revoke(result.id, terminate=True, signal=signal_name)
    wait_for_the_end(tree_pids)
    wait_until(lambda: result.status == "REVOKED", what="the revoked state")


def test_a_killed_pool_process_takes_the_tree_along_and_the_task_runs_again(system: System, folder: Path) -> None:
    worker = system.start_worker()
    result, tree_pids = start_tree(folder)
    os.kill(pool_process_of(worker, tree_pids), signal.SIGKILL)
    wait_for_the_end(tree_pids)
    assert result.get(ANSWER_S)["exit_status"] == 0


def test_a_killed_worker_takes_the_tree_along(system: System, folder: Path) -> None:
    """Its main process dies, with that its pool processes, with those the reapers' sockets, and so the programs."""
    worker = system.start_worker()
    _, tree_pids = start_tree(folder)
    worker.kill()
    wait_for_the_end(tree_pids)


def test_a_stopping_worker_lets_a_program_finish(system: System, folder: Path) -> None:
    worker = system.start_worker()
    folder.mkdir()
    result = command.delay(
        f"touch {folder}/begun; until test -e {folder}/go; do sleep 0.05; done; echo done", shell=True
    )
    wait_until((folder / "begun").exists, what="the program's start")
    worker.process.terminate()
    worker.wait_for_log("Warm shutdown")
    (folder / "go").touch()
    assert worker.stop() == 0
    assert result.get(ANSWER_S)["stdout"] == "done\n"
