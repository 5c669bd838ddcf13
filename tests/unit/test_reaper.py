"""How a reaper is spoken to: one order in, reports out, and hanging up means: end it all."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.process_tree import alive, pids, tree
from tests.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]


@dataclass
class Reaper:
    process: subprocess.Popen[bytes]
    channel: socket.socket

    def order(self, script: str, program: str = "/bin/sh") -> None:
        order = {"argv": [program, "-c", script], "cwd": None, "env": {}}
        self.channel.sendall(json.dumps(order).encode() + b"\n")

    def reports(self) -> list[dict[str, Any]]:
        """All it reports until it ends."""
        return [json.loads(line) for line in self.channel.makefile("rb")]


def start(*command: str) -> Iterator[Reaper]:
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    with ours, theirs:
        arguments = [sys.executable, *command, str(theirs.fileno())]
        with subprocess.Popen(arguments, pass_fds=[theirs.fileno()], cwd=REPOSITORY) as process, ours:
            theirs.close()
            yield Reaper(process, ours)


@pytest.fixture
def reaper() -> Iterator[Reaper]:
    yield from start("-I", "-S", "tasks/reaper.py")


def changed(change: str) -> Iterator[Reaper]:
    """A reaper for which something of the system is replaced."""
    run = "reaper.main(socket.socket(fileno=int(sys.argv[1])))"
    yield from start("-c", f"import os, socket, sys\nfrom tasks import reaper\n{change}\n{run}")


@pytest.fixture
def reaper_without_adoption() -> Iterator[Reaper]:
    yield from changed("reaper.adopt_descendants = lambda: False")


@pytest.fixture
def reaper_that_may_not_kill() -> Iterator[Reaper]:
    yield from changed("def refuse(*_): raise PermissionError\nos.kill = refuse")


def test_the_reports_are_the_start_and_the_end(reaper: Reaper, tmp_path: Path) -> None:
    reaper.order(f"echo $$ > {tmp_path}/pid; exit 7")
    started, ended = reaper.reports()
    assert started == {"pid": int((tmp_path / "pid").read_text())}
    assert ended == {"exit_code": 7, "cut_short": False, "survivors": []}
    assert reaper.process.wait() == 0


def test_a_program_that_cannot_start_is_reported(reaper: Reaper) -> None:
    reaper.order("", program="/no/such/program")
    assert reaper.reports()[-1] == {"errno": 2, "reason": "No such file or directory", "file": "/no/such/program"}


def test_hanging_up_kills_the_tree_and_is_still_answered(reaper: Reaper, tmp_path: Path) -> None:
    reaper.order(tree(tmp_path))
    tree_pids = pids(tmp_path)
    reaper.channel.shutdown(socket.SHUT_WR)
    assert reaper.reports()[-1] == {"exit_code": -signal.SIGKILL, "cut_short": True, "survivors": []}
    assert alive(tree_pids) == []


def test_hanging_up_before_an_order_ends_it(reaper: Reaper) -> None:
    reaper.channel.sendall(b'{"argv": ["half an ord')
    reaper.channel.close()
    assert reaper.process.wait(timeout=20) == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_reaper_asked_to_end_ends_the_tree_first(signum: signal.Signals, reaper: Reaper, tmp_path: Path) -> None:
    reaper.order(tree(tmp_path))
    tree_pids = pids(tmp_path)
    reaper.process.send_signal(signum)
    assert reaper.reports()[-1]["cut_short"]
    assert alive(tree_pids) == []


def test_killing_ones_own_group_does_not_hit_the_reaper(reaper: Reaper) -> None:
    """As scripts do that clean up with `kill 0`."""
    reaper.order("kill -KILL 0")
    assert reaper.reports()[-1]["exit_code"] == -signal.SIGKILL


def test_without_adoption_the_process_group_ends(reaper_without_adoption: Reaper, tmp_path: Path) -> None:
    """On systems that lack it: a daemon gets away there, all others do not."""
    reaper_without_adoption.order(f"sleep 1000 & echo $! > {tmp_path}/background; echo $$ > {tmp_path}/program")
    assert reaper_without_adoption.reports()[-1]["exit_code"] == 0
    tree_pids = [int((tmp_path / name).read_text()) for name in ("program", "background")]
    wait_until(lambda: not alive(tree_pids), what="the end of the group")


def test_processes_that_cannot_be_killed_are_reported(reaper_that_may_not_kill: Reaper, tmp_path: Path) -> None:
    """They would otherwise be waited for as long as they like."""
    reaper_that_may_not_kill.order(f"sleep 1 & echo $! > {tmp_path}/background; exit 0")
    assert reaper_that_may_not_kill.reports()[-1] == {
        "exit_code": 0,
        "cut_short": False,
        "survivors": [int((tmp_path / "background").read_text())],
    }
