"""Run one program and leave nothing of it behind; a process of its own, between a task and the program it runs.

`tasks.command` starts it as `python -I -S reaper.py FD`. FD is a socket that only the task's process holds at the
other end. The order to run a program comes in by it and the reports go out; when it hangs up, as the kernel makes it
do however the task's process ends, the program and everything that descends from it are killed.

Only the standard library and `agentlink.processes`: it must start in milliseconds.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

# Of the main thread, the only one here.
CHILDREN_FILE = f"/proc/self/task/{os.getpid()}/children"


def main(channel: socket.socket) -> None:
    """Take one order from `channel`, run its program, end its whole tree, report."""
    wakeup = watch_signals()
    line = channel.makefile("rb").readline()
    if not line.endswith(b"\n"):  # the task's process has ended already
        return
    adopting = adopt_descendants()
    try:
        program = start(json.loads(line), channel)
    except OSError as error:
        report(channel, {"errno": error.errno, "reason": error.strerror, "file": str(error.filename)})
        return
    let_go_of_standard_streams()
    exit_code = wait_for_end(program.pid, channel, wakeup)
    cut_short = exit_code is None
    killed_code, survivors = kill_all(program.pid, adopting=adopting)
    exit_code = killed_code if cut_short else exit_code
    report(channel, {"exit_code": exit_code, "cut_short": cut_short, "survivors": survivors})


def watch_signals() -> socket.socket:
    """A socket that has each signal's number to read; none of these signals ends this process any more."""
    wakeup, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A handler, not SIG_IGN: the program must find these signals as they are by default.
        signal.signal(signum, lambda *_: None)
    return wakeup


def adopt_descendants() -> bool:
    """Whether every descendant will become a child of ours, however it tries to get away, and can be found as one."""
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120 - start-up time
    from agentlink.processes import adopt_orphans

    return os.path.exists(CHILDREN_FILE) and adopt_orphans()  # noqa: PTH110 - start-up time


def start(order: dict[str, Any], channel: socket.socket) -> subprocess.Popen[bytes]:
    """The program just started, in a session of its own: its `kill 0` must not hit us.

    It tells its process id itself before it becomes the program: a program that kills us at once leaves no time for us
    to tell, and what it has started could not be found.

    Keep the object until the end: one that is let go of waits for its process, and the exit code is lost to `reap`.

    Raises:
        OSError: it can't be started.
    """
    from agentlink.processes import die_with_parent

    reaper_pid = os.getpid()

    def become_program() -> None:
        die_with_parent(reaper_pid)
        report(channel, {"pid": os.getpid()})

    return subprocess.Popen(
        order["argv"],
        cwd=order["cwd"],
        env=os.environ | order["env"],
        start_new_session=True,
        preexec_fn=become_program,  # safe: this process has one thread
    )


def let_go_of_standard_streams() -> None:
    """They are the program's: what it has closed must be closed."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)


def wait_for_end(program_pid: int, channel: socket.socket, wakeup: socket.socket) -> int | None:
    """The program's exit code; None when it is to be killed: the task hung up, or an OS signal asks for the end."""
    while True:
        readable, _, _ = select.select([channel, wakeup], [], [])
        if channel in readable:
            return None
        signums = wakeup.recv(4096)
        ended = dict(reap(os.WNOHANG))
        if program_pid in ended:
            return ended[program_pid]
        if set(signums) - {signal.SIGCHLD}:
            return None


def kill_all(program_pid: int, *, adopting: bool) -> tuple[int | None, list[int]]:
    """Kill until nothing is left: the program's exit code, if it ends only now, and the processes that can't be killed.

    Killing only children, never grandchildren, is enough: a killed child's children become ours before its end can be
    waited for. And it is exact: nobody else can get a child's number before this process has waited for it.
    """
    exit_code: int | None = None
    while True:
        if adopting:
            killed, refused = kill_children()
            if refused and not killed:
                return exit_code, refused
        else:
            kill_group(program_pid)
        ended = dict(reap(0))
        if not ended:
            return exit_code, []
        exit_code = ended.get(program_pid, exit_code)


def kill_children() -> tuple[list[int], list[int]]:
    """The children that were sent SIGKILL, and those that refused it because they changed their user, as sudo does."""
    with open(CHILDREN_FILE) as file:  # noqa: PTH123 - start-up time
        children = [int(pid) for pid in file.read().split()]
    refused = []
    for pid in children:
        try:
            os.kill(pid, signal.SIGKILL)
        except PermissionError:
            refused.append(pid)
    return [pid for pid in children if pid not in refused], refused


def kill_group(program_pid: int) -> None:
    """Where there is no adopting, as on macOS: whatever stayed in the program's process group."""
    with suppress(ProcessLookupError, PermissionError):  # macOS refuses when only zombies are left
        os.killpg(program_pid, signal.SIGKILL)


def reap(options: int) -> Iterator[tuple[int, int]]:
    """All children that have ended, each with its exit code; with options 0, wait for the first if there are any."""
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, options)
            if pid == 0:
                return
            yield pid, os.waitstatus_to_exitcode(status)
            options = os.WNOHANG


def report(channel: socket.socket, facts: dict[str, Any]) -> None:
    with suppress(ConnectionError):  # nobody is left to be told
        channel.sendall(json.dumps(facts).encode() + b"\n")


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
