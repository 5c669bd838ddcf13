"""Tasks and workflows that tell what they do while they run."""

from __future__ import annotations

import contextvars
import itertools
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from celery import chain, group

from tasks import task
from tests.integration.sample import add, total, wait_for_file
from workflows import workflow


@task(bind=True)
def count_to(self: Any, number: int, begin: int = 0) -> int:
    """Emit numbers in a loop that does nothing else; how many milliseconds that took."""
    begun = time.monotonic()
    for each in range(begin, begin + number):
        self.emit(each)
    return int((time.monotonic() - begun) * 1000)


@task(bind=True)
def speak_in_threads(self: Any) -> None:
    """One thread has a copy of the context, the other has not."""
    known = threading.Thread(target=contextvars.copy_context().run, args=(self.emit, "known"))
    unknown = threading.Thread(target=self.emit, args=("unknown",))
    for thread in (known, unknown):
        thread.start()
        thread.join()
    self.emit("own")


@task(bind=True)
def speak(self: Any, folder: str, words: list[str]) -> str:
    """Say each word when the file of its name is there."""
    for number, word in enumerate(words, start=1):
        wait_for_file(f"{folder}/{word}")
        self.emit(word)
        self.log("said %s", word)
        self.progress(number / len(words), f"said {word}")
    wait_for_file(f"{folder}/end")
    return " ".join(words)


@task(bind=True)
def speak_and_fail(self: Any) -> None:
    self.emit("last words")
    self.log("this will not do")
    self.progress(0.5)
    raise ValueError("no more")


@task(bind=True)
def speak_and_die(self: Any, marker: str) -> str:
    """Say something, see that it has arrived, and be killed; the second time, end."""
    first = not Path(marker).exists()
    self.emit("first" if first else "second")
    self.emit(" try")
    self.progress(0.8 if first else 0.2)
    if first:
        Path(marker).touch()
        wait_for_file(f"{marker}-arrived")
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for_file(f"{marker}-end")
    return "done"


@task(bind=True, default_retry_delay=0)
def speak_again(self: Any) -> int:
    self.emit(f"attempt {self.request.retries}")
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    return 1


@task(bind=True)
def hand_on(self: Any) -> None:
    self.emit("before ")
    raise self.replace(chain(say.si("then "), say.si("after")))


@task(bind=True)
def say(self: Any, text: str) -> str:
    self.emit(text)
    return text


@task(bind=True)
def say_much(self: Any, size_bytes: int) -> None:
    self.emit("x" * size_bytes)


@task(bind=True, soft_time_limit=1)
def count_for_ever(self: Any) -> None:
    for number in itertools.count():
        self.emit(number)
        self.progress(0.5, f"at {number}")


@task(bind=True, memory="50MB")
def say_in_little_room(self: Any, words: list[str]) -> None:
    for word in words:
        self.emit(word)
        time.sleep(0.1)


@workflow
def endless() -> Any:
    return count_for_ever.si()


@workflow
def in_little_room(words: list[str]) -> Any:
    return say_in_little_room.si(words)


@workflow
def counting(*numbers: int) -> Any:
    """One step after the other, each goes on where the one before has ended."""
    return chain(count_to.si(number, sum(numbers[:place])) for place, number in enumerate(numbers))


@workflow
def speaking(folder: str, words: list[str]) -> Any:
    return chain(speak.si(folder, words), add.si(1, 1))


@workflow
def outer(folder: str, words: list[str]) -> Any:
    """A workflow as the first of two steps."""
    return chain(speaking.si(folder, words), add.si(1, 1))


@workflow
def failing() -> Any:
    return chain(speak_and_fail.si(), add.si(1, 1))


@workflow
def dying(marker: str) -> Any:
    return chain(speak_and_die.si(marker), add.si(1, 1))


@workflow
def retrying() -> Any:
    return chain(speak_again.si(), add.si(1, 1))


@workflow
def replacing() -> Any:
    return chain(hand_on.si(), say.si("!"))


@workflow
def side_by_side(*numbers: int) -> Any:
    return chain(group(count_to.si(number) for number in numbers), total.s())


@workflow
def much(size_bytes: int) -> Any:
    return say_much.si(size_bytes)


@workflow
def said_in_threads() -> Any:
    return speak_in_threads.si()


@task(bind=True)
def read_pages(self: Any, count: int) -> int:
    self.log("read %s pages with token=hush", count)
    return count


@workflow
def reading() -> Any:
    return chain(read_pages.si(3), add.si(1, 1))
