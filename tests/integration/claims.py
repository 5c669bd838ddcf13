"""Tasks and workflows with large arguments, for tests/integration/test_large_arguments.py."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

from celery import chain, chord, group

from tasks import task
from tests.integration.large import length, noise
from tests.integration.sample import add, total, wait_for_file
from workflows import workflow


@task
def digest(value: Any, number: int = 0, *, more: Any = None) -> list[Any]:
    """What the argument was, in short."""
    whole = hashlib.sha256(repr((value, more)).encode()).hexdigest()
    return [whole, number]


@task
def append_to(values: list[int], number: int) -> int:
    """Changes its argument, which is its own; how many there are now."""
    values.append(number)
    return len(values)


@task(bind=True)
def second_time(self: Any, value: Any, countdown_s: float) -> list[Any]:
    """Works the second time; how its request knows the argument."""
    if self.request.retries == 0:
        raise self.retry(countdown=countdown_s)
    return [len(value), repr(self.request.args[0])]


@task
def killed_once(value: str, ledger: str) -> int:
    with Path(ledger).open("a") as file:
        file.write(f"{os.getpid()}\n")
    if len(Path(ledger).read_text().splitlines()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return len(value)


@task
def die_with(value: str, unless: str) -> int:
    if not Path(unless).exists():
        os._exit(137)
    return len(value)


@task(bind=True)
def hand_on(self: Any, value: str) -> None:
    """Have others do it, with the same."""
    raise self.replace(chord([digest.s(value, number) for number in range(3)], length.s()))


@task
def pair(first: Any, second: Any) -> list[int]:
    return [len(first), len(second)]


@task
def texts(size_bytes: int) -> list[Any]:
    """A large list of large texts and a thousand small ones."""
    return [[noise(size_bytes, number) for number in range(3)], *("small" * 20 for _ in range(1_000))]


@task
def shape(values: list[Any]) -> list[Any]:
    """The lengths in a list of texts, or lists of them."""
    return [len(value) if isinstance(value, str) else shape(value) for value in values]


@workflow
def shared(corpus: str, count: int) -> Any:
    """Many steps with the same large argument."""
    return chord([digest.s(corpus, number) for number in range(count)], length.s())


@workflow
def passed_to_a_queue(size_bytes: int, queue: str) -> Any:
    """A large result for a step in another queue."""
    return chain(noise.s(size_bytes), digest.s().set(queue=queue))


@workflow
def shared_when_there(corpus: str, path: str) -> Any:
    """Its second step has a large argument, and waits for the first."""
    return chain(wait_for_file.si(path), digest.si(corpus))


@workflow
def nested(width: int) -> Any:
    """Chords in chords in chords: `width` times `width` times 1."""
    inner = [chord([chord([add.s(one, two)], total.s()) for two in range(width)], total.s()) for one in range(width)]
    return chord(inner, total.s())


@workflow
def groups_in_a_chord(size: int) -> Any:
    return chord([group([noise.s(size, 1), noise.s(size, 2)]), group([noise.s(4), noise.s(size, 3)])], shape.s())
