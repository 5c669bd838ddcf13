"""Hogs: tasks that declare little and take much, each in its own way. And honest ones that run beside them.

Each enters the ledger at `path` as it begins, and again if it gets to its end. What it returns can be checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import signal
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import NoReturn

from tasks import task
from tests.chaos import ledger

MB = 1_000_000
CHUNK_BYTES = 16 * MB
FILL = b"x"
#: What every liar declares.
DECLARED = "50MB"
#: Allocates as much as it is told, says how much that was, and waits to be told to end.
PROGRAM = """
import sys
try:
    held = [bytearray(b"x") * 4_000_000 for _ in range(int(sys.argv[1]) // 4_000_000)]
except MemoryError:
    sys.exit("MemoryError")
print(sum(map(len, held)), flush=True)
sys.stdin.read()
"""
#: What `multiprocessing.shared_memory` names by itself looks the same whoever has made it.
SHARED_PREFIX = "agentlink-hog-"


#: Called by a hog that has all it will take.
at_peak: Callable[[], object] = bool


@contextlib.contextmanager
def entered(path: str, number: int) -> Iterator[None]:
    """Enter the ledger before and after."""
    attempt_id = uuid.uuid4().hex[:12]
    ledger.write(path, "start", number, attempt_id, "hogs")
    yield
    ledger.write(path, "end", number, attempt_id, "hogs")


# -- Honest ones


def hold(size_bytes: int, hold_s: float) -> int:
    """Take memory, keep it for a while, and say how much of it is still what was written."""
    held = bytearray(FILL) * size_bytes
    time.sleep(hold_s)
    at_peak()
    return held.count(FILL)


@task(memory="25MB")
def holds_20_mb(path: str, number: int, hold_s: float) -> int:
    with entered(path, number):
        return hold(20 * MB, hold_s)


@task(memory="105MB")
def holds_100_mb(path: str, number: int, hold_s: float) -> int:
    with entered(path, number):
        return hold(100 * MB, hold_s)


@task(memory="205MB")
def holds_200_mb(path: str, number: int, hold_s: float) -> int:
    with entered(path, number):
        return hold(200 * MB, hold_s)


@task(memory="305MB")
def holds_300_mb(path: str, number: int, hold_s: float) -> int:
    with entered(path, number):
        return hold(300 * MB, hold_s)


@task(memory="150MB")
def sorts(path: str, number: int, count: int) -> int:
    """Sort as many numbers, and count those that are where they belong."""
    import numpy as np

    with entered(path, number):
        numbers = np.random.default_rng(number).permutation(count)
        numbers.sort()
        return int((numbers == np.arange(count)).sum())


@task(memory="110MB")
def runs_a_program(path: str, number: int) -> int:
    """Its program takes 80 MB."""
    with entered(path, number), programs(1, 80 * MB) as held_bytes:
        return held_bytes


@task(memory="50MB")
def reads_a_file(path: str, number: int, file_path: str) -> list[int]:
    """The checksums of a file ten times as large as what is declared: once by reading it, once by mapping it."""
    with entered(path, number), Path(file_path).open("rb", buffering=0) as file:
        buffer, read_sum = bytearray(4 * MB), 0
        while size := file.readinto(buffer):
            read_sum = zlib.crc32(memoryview(buffer)[:size], read_sum)
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            mapped_sum = zlib.crc32(mapped)
            at_peak()
            return [read_sum, mapped_sum]


@task(memory="80MB")
def burns(path: str, number: int, iterations: int) -> list[str]:
    """Keep four threads busy: while it hashes, none of them needs the interpreter."""
    with entered(path, number), ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda salt: burn(salt, iterations), range(4)))


def burn(salt: int, iterations: int) -> str:
    return hashlib.pbkdf2_hmac("sha256", b"hog", bytes([salt]), iterations).hex()


@task(memory="50MB")
def fills_a_disk(path: str, number: int, folder: str) -> str:
    """Write until there is no room left, and give it back."""
    with entered(path, number):
        file_path = Path(folder, f"filler-{number}")
        try:
            with file_path.open("wb", buffering=0) as file:
                while True:
                    file.write(FILL * MB)
        except OSError as error:
            return os.strerror(error.errno or 0)
        finally:
            file_path.unlink()


# -- Liars


@task(memory=DECLARED)
def allocates(path: str, number: int, size_bytes: int) -> int:
    """As fast as the machine can."""
    with entered(path, number):
        held = [bytearray(FILL) * CHUNK_BYTES for _ in range(size_bytes // CHUNK_BYTES)]
        at_peak()
        return sum(chunk.count(FILL) for chunk in held)


@task(memory=DECLARED)
def allocates_with_numpy(path: str, number: int, size_bytes: int) -> int:
    """In large pages: several times as fast again."""
    import numpy as np

    with entered(path, number):
        held = [np.ones(CHUNK_BYTES, dtype=np.uint8) for _ in range(size_bytes // CHUNK_BYTES)]
        at_peak()
        return int(sum(chunk.sum() for chunk in held))


@task(memory=DECLARED)
def leaks(path: str, number: int, size_bytes: int) -> int:
    """A little all the time: 100 MB a second at most."""
    with entered(path, number):
        held = []
        while len(held) * 2 * MB < size_bytes:
            held.append(bytearray(FILL) * (2 * MB))
            time.sleep(0.02)
        at_peak()
        return sum(chunk.count(FILL) for chunk in held)


@task(memory=DECLARED)
def has_a_program_allocate(path: str, number: int, size_bytes: int) -> int:
    """Itself it takes nothing."""
    with entered(path, number), programs(1, size_bytes) as held_bytes:
        return held_bytes


@task(memory=DECLARED)
def has_many_programs_allocate(path: str, number: int, size_bytes: int) -> int:
    """Each of which takes less than is declared."""
    with entered(path, number), programs(size_bytes // (40 * MB), 40 * MB) as held_bytes:
        return held_bytes


@contextlib.contextmanager
def programs(count: int, size_bytes: int) -> Iterator[int]:
    """Programs that allocate so much each; what all of them hold.

    Raises:
        MemoryError: one of them could not.
    """
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-I", "-S", "-c", PROGRAM, str(size_bytes)]
        running = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            for _ in range(count)
        ]
        stack.callback(lambda: [program.stdin and program.stdin.close() for program in running])
        answers = [program.stdout.readline() if program.stdout else b"" for program in running]
        if not all(answers):
            raise MemoryError(f"{answers.count(b'')} of {count} programs had no memory")
        at_peak()
        yield sum(map(int, answers))


@task(memory=DECLARED)
def shares_memory(path: str, number: int, size_bytes: int) -> int:
    """Mapped shared, which no limit of the process counts."""
    with entered(path, number), mmap.mmap(-1, size_bytes) as shared, memoryview(shared) as memory:
        return fill(memory)


@task(memory=DECLARED)
def shares_memory_by_name(path: str, number: int, size_bytes: int) -> int:
    """The same in a file below `/dev/shm`; its name is gone before it grows."""
    with entered(path, number):
        shared = SharedMemory(f"{SHARED_PREFIX}{uuid.uuid4().hex}", create=True, size=size_bytes)
        try:
            shared.unlink()
            return fill(shared.buf)
        finally:
            shared.close()


def fill(memory: memoryview) -> int:
    """Write all of it, and say how much that was."""
    chunk = FILL * CHUNK_BYTES
    for start in range(0, len(memory), CHUNK_BYTES):
        end = min(start + CHUNK_BYTES, len(memory))
        memory[start:end] = chunk[: end - start]
    at_peak()
    return len(memory)


@task(memory=DECLARED)
def stresses(path: str, number: int, size_bytes: int) -> int:
    """A program that raises its own limits, and starts again what is killed: Debian's stress-ng."""
    with entered(path, number):
        command = ["stress-ng", "--vm", "2", "--vm-bytes", str(size_bytes), "--vm-keep", "--timeout", "3s", "--quiet"]
        return subprocess.run(command, check=False).returncode


@task(memory=DECLARED)
def forks(path: str, number: int, count: int) -> int:
    """A fork bomb that stops: so many processes that only wait."""
    with entered(path, number):
        pids: list[int] = []
        try:
            while len(pids) < count:
                pids.append(os.fork() or wait_for_ever())
            at_peak()
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        return len(pids)


def wait_for_ever() -> NoReturn:
    try:
        while True:
            signal.pause()
    finally:
        os._exit(0)


@task
def says_nothing(path: str, number: int, size_bytes: int) -> int:
    """Declares nothing and takes most of what there is: alone it may."""
    with entered(path, number):
        return hold(size_bytes, 0.2)
