"""What `agentlink up` is to other processes: a lock held as long as it runs, what it says of itself, and how to end it.

Also how it is started in the background. What it does while it runs is in `supervisor`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from agentlink.broker import server
from agentlink.errors import AgentLinkError
from agentlink.settings import Settings

POLL_S = 0.02
#: Somebody who looks whether the lock is free holds it for an instant.
LOCK_PATIENCE_S = 0.5
START_TIMEOUT_S = 60.0
#: Between asking a process to stop at once and killing it.
KILL_AFTER_S = 10.0


class AlreadyUp(AgentLinkError):
    """Another `agentlink up` runs on the same home."""

    def __init__(self, pid: str, home: str) -> None:
        super().__init__(pid, home)
        self.pid, self.home = pid, home

    def __str__(self) -> str:
        return f"AgentLink is already up on {self.home} (pid {self.pid}); `agentlink down` stops it"


class UpFailed(AgentLinkError):
    """`agentlink up` was started in the background and did not come up."""

    def __init__(self, words: str, log: str) -> None:
        super().__init__(words, log)
        self.words, self.log = words, log

    def __str__(self) -> str:
        return f"`agentlink up` did not come up: {self.words} (log: {self.log})"


def take_lock(settings: Settings) -> int:
    """The lock that makes one `agentlink up` a home, as an open file that holds it.

    Raises:
        AlreadyUp: somebody else has it.
    """
    server.make_folder(settings.home)
    fd = os.open(_lock_path(settings), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                raise AlreadyUp(_lock_path(settings).read_text(), str(settings.home)) from None
            time.sleep(POLL_S)
        else:
            os.truncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
            return fd


def write_state(settings: Settings, state: dict[str, Any]) -> None:
    """Say something of oneself, to be read with `read_state`."""
    written = _state_path(settings).with_suffix(".new")
    written.write_text(json.dumps(state))
    written.replace(_state_path(settings))


def read_state(settings: Settings) -> dict[str, Any] | None:
    """What a running `agentlink up` on this home says of itself: its pid and home, Flower's address (or None), and
    whether it is `starting`, `up` or `stopping`. None: there is none, or it has only just begun.
    """
    if server.is_free(_lock_path(settings)):
        return None
    try:
        state: dict[str, Any] = json.loads(_state_path(settings).read_text())
    except (OSError, ValueError):
        return None  # it has the lock and is about to write
    return state


def say_worker_ready(settings: Settings, pid: int) -> None:
    """The worker with this pid takes tasks."""
    (settings.home / "worker.ready").write_text(str(pid))


def worker_ready_pid(settings: Settings) -> int | None:
    """Which worker has said that it takes tasks, here and now or some time before."""
    with contextlib.suppress(OSError, ValueError):
        return int((settings.home / "worker.ready").read_text())
    return None


def release_lock(settings: Settings, lock_fd: int) -> None:
    """The end: nothing is up any more."""
    _state_path(settings).unlink(missing_ok=True)
    os.truncate(lock_fd, 0)
    os.close(lock_fd)


def start(settings: Settings, *, wait_for_worker: bool) -> tuple[dict[str, Any], bool]:
    """Have `agentlink up` running in the background; return what it says of itself and whether this call started it.

    One that is stopping is waited for.

    Raises:
        UpFailed: it ended instead, or took too long; with its last words.
    """
    spawned: list[subprocess.Popen[bytes]] = []
    try:
        state = _wait_until_up(settings, ("up",) if wait_for_worker else ("starting", "up"), spawned)
    except BaseException:
        _end(spawned)
        raise
    ours = [process for process in spawned if process.pid == state["pid"]]
    # One that was too late for the lock would take it as soon as it is free, and then nobody would know of it.
    _end([process for process in spawned if process not in ours])
    for process in ours:
        process.returncode = 0  # it goes on without us; the interpreter need not warn of that
    return state, bool(ours)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
        process.wait()


def _wait_until_up(
    settings: Settings, wanted: tuple[str, ...], spawned: list[subprocess.Popen[bytes]]
) -> dict[str, Any]:
    timeout_s = START_TIMEOUT_S + settings.stop_grace_s
    deadline = time.monotonic() + timeout_s
    process: subprocess.Popen[bytes] | None = None
    log_start = 0
    while (state := read_state(settings)) is None or state["state"] not in wanted:
        if process is None and server.is_free(_lock_path(settings)):
            server.make_folder(settings.home)
            log_start = log_path(settings).stat().st_size if log_path(settings).exists() else 0
            process = _spawn(settings)
            spawned.append(process)
        elif process is not None and process.poll() is not None:
            if server.is_free(_lock_path(settings)):
                raise UpFailed(_last_words(settings, log_start), str(log_path(settings)))
            process = None  # somebody else was faster; theirs is as good
        if time.monotonic() > deadline:
            raise UpFailed(f"it was not ready within {timeout_s:g} s", str(log_path(settings)))
        time.sleep(POLL_S)
    return state


def stop(settings: Settings) -> bool:
    """Drain and stop the `agentlink up` of this home, and wait for its end; return whether there was one.

    Ctrl-C meanwhile is passed on: what is running goes back to its queue.

    Raises:
        AgentLinkError: it is still there after its grace.
    """
    pid = _holder(settings)
    if pid is None:
        return False
    _ask_to_stop(pid)
    try:
        _wait_for_end(settings, pid)
    except KeyboardInterrupt:
        _ask_to_stop(pid)
        _wait_for_end(settings, pid)
    return True


def log_path(settings: Settings) -> Path:
    """What an `agentlink up` in the background has to say."""
    return settings.home / "up.log"


def _spawn(settings: Settings) -> subprocess.Popen[bytes]:
    with log_path(settings).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "agentlink", "up"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )


def _last_words(settings: Settings, log_start: int) -> str:
    """What was said to the user, else the last thing said at all."""
    lines = log_path(settings).read_bytes()[log_start:].decode(errors="replace").strip().splitlines()
    to_the_user = [line.removeprefix("agentlink: ") for line in lines if line.startswith("agentlink: ")]
    return "; ".join(to_the_user) or (lines[-1] if lines else "it said nothing")


def _holder(settings: Settings) -> int | None:
    """The process that has the lock; None: nobody."""
    while not server.is_free(_lock_path(settings)):
        if pid := _lock_path(settings).read_text():
            return int(pid)
        time.sleep(POLL_S)  # it has taken the lock and is about to write
    return None


def _ask_to_stop(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def _wait_for_end(settings: Settings, pid: int) -> None:
    deadline = time.monotonic() + settings.stop_grace_s + 3 * KILL_AFTER_S
    while not server.is_free(_lock_path(settings)):
        if time.monotonic() > deadline:
            raise AgentLinkError(f"`agentlink up` (pid {pid}) did not stop in time")
        time.sleep(POLL_S)


def _lock_path(settings: Settings) -> Path:
    return settings.home / "up.lock"


def _state_path(settings: Settings) -> Path:
    return settings.home / "up.json"
