"""How a task's processes are ended: all of them, whatever they do about it, and no other."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from resource_guard import held_tree
from resource_guard.actions import TreeEnded, TreeEnding
from resource_guard.held_tree import HeldTree
from tests.process_tree import alive
from tests.waiting import wait_until

Start = Callable[..., subprocess.Popen[bytes]]

#: Three levels: a shell, a shell of that one in a session of its own, and what it starts. None of them minds SIGTERM.
THREE_LEVELS = "trap '' TERM; setsid sh -c 'sleep 1000 & sleep 1000 & wait; wait' & wait; wait"
#: Ends by itself when asked, with an exit code of its own.
OBLIGING = "import signal; signal.signal(15, lambda *_: exit(7)); print(flush=True); signal.pause()"
#: 64 processes, of which each starts another every millisecond.
BOMB = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(6): os.fork()
while True:
    time.sleep(0.001)
    os.fork() or os._exit(0)
"""
#: Starts others, which mind no SIGTERM, until it is asked to end.
LAST_MOMENT = """
import os, signal, time
os.fork()
for _ in range(1000):
    os.fork() or [signal.signal(15, signal.SIG_IGN), time.sleep(20), os._exit(0)]
    time.sleep(0.0005)
"""
#: Busy in C: Python gets no chance to notice a signal for minutes.
IN_C = "import signal, sys; signal.signal(15, lambda *_: sys.exit(0)); print(flush=True); sum(range(10**12))"


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a program; whatever is left of it afterwards is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str, **options: object) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, **options))  # type: ignore[call-overload]
        return started[-1]

    yield start
    for process in started:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # if it has led a group, or somebody is left
            os.killpg(process.pid, signal.SIGKILL)
        with process:
            process.kill()


def end(ending: TreeEnding) -> TreeEnded:
    """Step until it is over, as the guard does from look to look."""
    return wait_until(lambda: ending.step(time.monotonic()), what="the end of the tree")


def descendants(process: subprocess.Popen[bytes], count: int) -> list[int]:
    """The pids of a program that has started `count` others, waited for."""

    def family() -> list[int]:
        pids = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        return [process.pid, *pids] if len(pids) == count else []

    return wait_until(family, what=f"{count} descendants")


def is_stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


def test_who_ends_when_asked_is_not_killed(start: Start) -> None:
    pids = descendants(start("sh", "-c", "sleep 1000 & sleep 1000"), 2)
    ended = end(TreeEnding(pids[0], grace_s=5))
    assert alive(pids) == []
    assert (sorted(ended.pids), ended.killed, ended.left, ended.asked) == (sorted(pids), (), (), True)
    assert ended.took_s < 1


def test_who_does_not_is_killed_after_the_grace_with_all_it_has_started(start: Start) -> None:
    """A grandchild in a session of its own too, of which no signal to a process group would be heard."""
    pids = descendants(start("sh", "-c", THREE_LEVELS), 3)
    ended = end(TreeEnding(pids[0], grace_s=0.3))
    assert alive(pids) == []
    assert sorted(ended.pids) == sorted(ended.killed) == sorted(pids)
    assert 0.3 <= ended.took_s < 1


def test_without_a_grace_nobody_is_asked(start: Start, tmp_path: Path) -> None:
    """Memory that is over its hard limit can't wait."""
    said = tmp_path / "asked"
    pids = descendants(start("sh", "-c", f"trap 'touch {said}' TERM; sleep 1000 & wait"), 1)
    ended = end(TreeEnding(pids[0], grace_s=0))
    assert alive(pids) == []
    assert not ended.asked
    assert not said.exists()


def test_a_process_that_is_busy_in_c_does_not_get_away(start: Start) -> None:
    process = start(sys.executable, "-c", IN_C)
    assert process.stdout
    process.stdout.readline()
    before_s = psutil.Process(process.pid).cpu_times().user
    wait_until(lambda: psutil.Process(process.pid).cpu_times().user > before_s + 0.05, what="the busy part")
    ended = end(TreeEnding(process.pid, grace_s=0.2))
    assert ended.killed == (process.pid,)
    assert process.wait() == -signal.SIGKILL


def test_a_stopped_process_is_continued_so_that_it_can_end_by_itself(start: Start) -> None:
    process = start(sys.executable, "-c", OBLIGING)
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: is_stopped(process.pid), what="the stop")
    assert end(TreeEnding(process.pid, grace_s=5)).killed == ()
    assert process.wait() == 7


def test_a_stray_whose_group_is_led_by_one_of_the_tree_is_found(start: Start, tmp_path: Path) -> None:
    """Its parent has ended, and it has another one now; that it was started from here shows in its process group."""
    script = f"(trap '' TERM; sleep 1000 & echo $! > {tmp_path}/stray); sleep 1000 & wait"
    leader = start("sh", "-c", script, start_new_session=True)
    stray = int(wait_until(lambda: (tmp_path / "stray").exists() and (tmp_path / "stray").read_text(), what="a stray"))
    wait_until(lambda: psutil.Process(stray).ppid() not in (leader.pid, 0), what="its adoption")
    ended = end(TreeEnding(leader.pid, grace_s=0.2))
    assert stray in ended.pids
    assert alive([leader.pid, stray]) == []


def test_nobody_whom_a_leader_starts_in_its_last_moment_is_left(start: Start) -> None:
    """It ends when asked, in the midst of starting others, of whom nobody knows yet."""
    for _ in range(20):
        leader = start(sys.executable, "-c", LAST_MOMENT, start_new_session=True)
        wait_until(psutil.Process(leader.pid).children, what="some that it has started")
        ended = end(TreeEnding(leader.pid, grace_s=0.2))
        assert ended.left == ()
        assert in_session(leader.pid) == []


def in_session(leader_pid: int) -> list[int]:
    return [
        process.pid for process in psutil.process_iter() if alive([process.pid]) and _session(process.pid) == leader_pid
    ]


def test_who_starts_others_faster_than_it_can_be_watched_is_ended(start: Start) -> None:
    """Each of its processes is stopped before any is killed: a stopped one starts no other."""
    process = start(sys.executable, "-c", BOMB, start_new_session=True)
    wait_until(lambda: len(psutil.Process(process.pid).children(recursive=True)) > 20, what="many processes")
    ended = end(TreeEnding(process.pid, grace_s=0))
    assert ended.left == ()
    assert alive(list(ended.pids)) == []
    assert in_session(process.pid) == []


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def test_what_is_no_longer_needed_is_not_done(start: Start) -> None:
    """Asked before anything is sent, and once more before the kill."""
    process = start("sh", "-c", "trap '' TERM; sleep 1000 & wait; wait")
    pids = descendants(process, 1)
    ended = end(TreeEnding(process.pid, grace_s=0.1, still_needed=lambda: False))
    assert (ended.spared, ended.asked, ended.pids) == (True, False, ())
    assert alive(pids) == pids

    answers = [True, False]
    ended = end(TreeEnding(process.pid, grace_s=0.1, still_needed=lambda: answers.pop(0)))
    assert (ended.spared, ended.asked, ended.killed) == (True, True, ())
    assert alive([process.pid]) == [process.pid]


def test_who_is_frozen_takes_no_more_until_it_is_ended(start: Start) -> None:
    """With all that are in its group; and goes on if it is not to end after all."""
    process = start("sh", "-c", "sleep 1000 & wait", process_group=0)
    pids = descendants(process, 1)
    spared = TreeEnding(process.pid, grace_s=0.0, still_needed=lambda: False)
    spared.freeze()
    wait_until(lambda: all(map(is_stopped, pids)), what="both to be stopped")
    assert end(spared).spared
    wait_until(lambda: not any(map(is_stopped, pids)), what="both to go on")

    ending = TreeEnding(process.pid, grace_s=0.0)
    ending.freeze()
    wait_until(lambda: all(map(is_stopped, pids)), what="both to be stopped")
    assert set(end(ending).killed) == set(pids)
    assert alive(pids) == []


def test_to_freeze_one_that_leads_no_group_stops_nobody_else(start: Start) -> None:
    process, other = start("sleep", "1000"), start("sleep", "1000")
    ending = TreeEnding(process.pid, grace_s=0.0)
    ending.freeze()
    wait_until(lambda: is_stopped(process.pid), what="it to be stopped")
    assert not is_stopped(other.pid)
    assert end(ending).killed == (process.pid,)


@pytest.mark.hogs
def test_a_step_takes_no_time(start: Start) -> None:
    """Who watches the machine does so from the same thread."""
    pids = descendants(start("sh", "-c", THREE_LEVELS), 3)
    ending = TreeEnding(pids[0], grace_s=0.2)
    longest_s = 0.0
    while True:
        began = time.monotonic()
        ended = ending.step(began)
        longest_s = max(longest_s, time.monotonic() - began)
        if ended:
            break
        time.sleep(0.01)
    assert longest_s < 0.1


@pytest.mark.parametrize("pid", [1, os.getpid(), os.getppid()], ids=["init", "this one", "its parent"])
def test_who_is_no_child_of_this_process_is_never_ended(pid: int) -> None:
    """Such as the next process with the number of one that has ended."""
    ended = end(TreeEnding(pid, grace_s=0))
    assert (ended.pids, ended.left) == ((), ())


def test_nor_is_a_grandchild(start: Start) -> None:
    parent, child = descendants(start("sh", "-c", "sleep 1000; true"), 1)
    end(TreeEnding(child, grace_s=0))
    assert alive([parent, child]) == [parent, child]


def test_a_process_that_has_ended_already_is_not_waited_for(start: Start) -> None:
    process = start("true")
    process.wait()
    ended = end(TreeEnding(process.pid, grace_s=5))
    assert (ended.pids, ended.left) == ((), ())


def test_a_tree_holds_processes_and_not_numbers(start: Start) -> None:
    """One that has ended is signalled no more, even if its number belongs to another by now."""
    process = start("sleep", "1000")
    held = HeldTree(process.pid)
    held.look()
    process.kill()
    process.wait()
    held.send(signal.SIGKILL)  # raises nothing, reaches nobody
    held.look()
    assert held.pids == ()


def test_without_pidfds_and_lists_of_children_it_works_as_well(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not Linux, an old kernel, or a container that forbids them."""

    def forbidden(_pid: int) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "pidfd_open", forbidden)
    monkeypatch.setattr(held_tree, "_CHILDREN_LISTED", False)
    pids = descendants(start("sh", "-c", THREE_LEVELS), 3)
    ended = end(TreeEnding(pids[0], grace_s=0.1))
    assert sorted(ended.killed) == sorted(pids)
    assert alive(pids) == []
