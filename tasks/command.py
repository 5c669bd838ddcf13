"""Run a program as a task: `command` for workflows, `run` for code of yours that is a task already.

The program's whole process tree ends with the task, however that ends: done, failed, out of time, revoked, or its
process or the whole worker killed. Processes that the program left in the background, also those in a session of their
own, are gone when `run` returns. `tasks.reaper` sees to it.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from agentlink import settings
from tasks.app import task
from tasks.command_errors import (
    CommandEndedBadly,
    CommandFailed,
    CommandFolderMissing,
    CommandKilled,
    CommandNotKilled,
    CommandOutputLost,
    CommandReaperLost,
    CommandStartError,
    CommandTimedOut,
    ProgramNotExecutable,
    ProgramNotFound,
)
from tasks.command_order import checked_environment, checked_folder, checked_stdin, checked_timeout, checked_words
from tasks.command_output import Output

REAPER = Path(__file__).with_name("reaper.py")


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a program gave: the first part of each output stream and, if that is not all, the file that holds all."""

    exit_status: int
    stdout: str
    stderr: str
    stdout_file: str | None
    stderr_file: str | None
    duration_s: float


@task(name="tasks.command", bind=True)
def command(
    self: Any,
    argv: list[str] | str,
    cwd: str | None = None,
    env: dict[str, str] | None = None,
    stdin: str | None = None,
    timeout: float | str | None = None,
    shell: bool = False,
) -> dict[str, Any]:
    """Run a program and give its exit status and output, see `run`; `timeout` is seconds, or a text like `"5m"`."""
    folder = settings.load().runs_folder / str(self.request.root_id) / str(self.request.id)
    finished = run(argv, cwd=cwd, env=env, stdin=stdin, timeout_s=timeout, output_folder=folder, shell=shell)
    return asdict(finished)


def run(
    argv: Sequence[str] | str,
    *,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout_s: float | str | None = None,
    output_cap_bytes: int = 64_000,
    output_folder: Path,
    shell: bool = False,
) -> Finished:
    """Run a program to its end, and then end whatever is left of its process tree.

    `argv` is a list, passed on as it is; with `shell` it is one text for `/bin/sh`. `env` adds to this process's
    environment. Without `stdin` the program reads nothing. `timeout_s` may also be a text like `"5m"`. Of each output
    stream at most `output_cap_bytes` are kept in memory; a longer one goes to a file in `output_folder`, which is made
    only then.

    Raises:
        CommandInvalid: this can't be a command, and what would be.
        CommandFolderMissing, ProgramNotFound, ProgramNotExecutable, CommandStartError: it did not start.
        CommandFailed, CommandKilled, CommandTimedOut: it ran and did not end well.
        CommandOutputLost, CommandReaperLost, CommandNotKilled: it could not be looked after to its end.
    """
    words = checked_words(argv, shell=shell)
    order = {"argv": words, "cwd": checked_folder(cwd), "env": checked_environment(env)}
    text, limit_s = checked_stdin(stdin), checked_timeout(timeout_s)
    started_at = time.monotonic()
    with (
        _reaper(words, text) as (channel, stdout_pipe, stderr_pipe),
        closing(Output(words, stdout_pipe, output_folder / "stdout", output_cap_bytes)) as stdout,
        closing(Output(words, stderr_pipe, output_folder / "stderr", output_cap_bytes)) as stderr,
    ):
        with suppress(ConnectionError):  # the reaper is dead: seen below
            channel.sendall(json.dumps(order).encode() + b"\n")
        reports, timed_out = _attend(channel, (stdout, stderr), limit_s)
        facts = reports.facts()
        _raise_unless_ended(facts, order)
        # All writers are gone, so this comes to an end, and nothing is written after it.
        while stdout.take() or stderr.take():
            pass
    duration_s = time.monotonic() - started_at
    overtime_s = limit_s if timed_out and facts["cut_short"] else None
    if overtime_s is not None or facts["exit_code"] != 0:
        kind, cause = _bad_end(facts["exit_code"], overtime_s)
        raise kind(words, cause, stdout.tail(), stderr.tail(), stdout.file_name, stderr.file_name)
    return Finished(
        exit_status=0,
        stdout=stdout.text(),
        stderr=stderr.text(),
        stdout_file=stdout.file_name,
        stderr_file=stderr.file_name,
        duration_s=round(duration_s, 3),
    )


@contextmanager
def _reaper(words: list[str], stdin: bytes | None) -> Iterator[tuple[socket.socket, IO[bytes], IO[bytes]]]:
    """A reaper that waits for its order: the socket to it, and the program's output. At the exit its tree is gone."""
    channel, far_end = socket.socketpair()
    with channel, far_end, _stdin_file(words, stdin) as stdin_file:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(REAPER), str(far_end.fileno())],
                stdin=stdin_file,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[far_end.fileno()],
                start_new_session=True,
            )
        except OSError as error:
            raise CommandStartError(words, error.strerror or str(error)) from error
        # Leaving hangs up first, which makes the reaper end the tree, and then waits for the reaper.
        with process, channel:
            far_end.close()
            assert process.stdout
            assert process.stderr
            yield channel, process.stdout, process.stderr


def _stdin_file(words: list[str], stdin: bytes | None) -> IO[bytes]:
    """A file and no pipe: nobody has to feed it while the program runs."""
    if stdin is None:
        return Path(os.devnull).open("rb")
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        file.write(stdin)
        file.seek(0)
    except OSError as error:
        file.close()
        raise CommandOutputLost(words, "a temporary file for its input", error.strerror or str(error)) from error
    return file


def _attend(channel: socket.socket, outputs: tuple[Output, Output], timeout_s: float | None) -> tuple[_Reports, bool]:
    """Take what the program writes until its reaper is done: the reports, and whether the time ran out."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    reports, timed_out = _Reports(channel), False
    with selectors.DefaultSelector() as selector:
        for source in (reports, *outputs):
            selector.register(source.pipe, selectors.EVENT_READ, source)
        while not reports.complete:
            for key, _ in selector.select(None if deadline is None else _wait_s(deadline)):
                if not key.data.take():
                    selector.unregister(key.fileobj)
            if deadline is not None and time.monotonic() >= deadline:
                deadline, timed_out = None, True
                with suppress(OSError):  # macOS: the reaper has just ended
                    channel.shutdown(socket.SHUT_WR)
    return reports, timed_out


def _wait_s(deadline: float) -> float:
    """How long to wait at once: epoll counts milliseconds, and to no more than 24 days."""
    return min(max(0.0, deadline - time.monotonic()), 86400.0)


class _Reports:
    """What the reaper tells; complete when it has ended."""

    def __init__(self, channel: socket.socket) -> None:
        self.pipe = channel
        self.complete = False
        self._received = b""

    def take(self) -> bool:
        """Take a piece of what there is now; False at the end."""
        try:
            piece = self.pipe.recv(65536)
        except ConnectionError:  # the reaper was killed before it had read its order
            piece = b""
        self._received += piece
        self.complete = not piece
        return bool(piece)

    def facts(self) -> dict[str, Any]:
        lines = self._received.split(b"\n")[:-1]
        return {name: fact for line in lines for name, fact in json.loads(line).items()}


def _raise_unless_ended(facts: dict[str, Any], order: dict[str, Any]) -> None:
    """Raise if the program never ran, or if nobody knows that all of it has ended."""
    words = order["argv"]
    if "errno" in facts:
        reason = facts["reason"]
        # What is missing has one name, and the folder is entered before the program is looked for.
        if facts["file"] == order["cwd"] and (order["cwd"] != words[0] or not os.path.isdir(order["cwd"])):  # noqa: PTH112
            raise CommandFolderMissing(order["cwd"], reason)
        if facts["errno"] in (errno.ENOENT, errno.ENOTDIR):
            raise ProgramNotFound(words, reason)
        if facts["errno"] in (errno.EACCES, errno.ENOEXEC):
            raise ProgramNotExecutable(words, reason)
        raise CommandStartError(words, reason)
    if "exit_code" not in facts:
        if "pid" in facts:  # the program died with the reaper; of its children, those in its group can be found
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(facts["pid"], signal.SIGKILL)
        raise CommandReaperLost(words)
    if facts["survivors"]:
        raise CommandNotKilled(words, facts["survivors"])


def _bad_end(exit_code: int, overtime_s: float | None) -> tuple[type[CommandEndedBadly], int | float | str]:
    if overtime_s is not None:
        return CommandTimedOut, overtime_s
    if exit_code > 0:
        return CommandFailed, exit_code
    try:
        return CommandKilled, signal.Signals(-exit_code).name
    except ValueError:  # the real-time signals between the first and the last have no names
        return CommandKilled, f"signal {-exit_code}"
