"""Tasks and workflows with large results, for tests/integration/test_large_results.py."""

from __future__ import annotations

import hashlib
from typing import Any

from celery import chain, chord

from tasks import task
from tests.integration.sample import wait_for_file
from workflows import workflow


@task
def letters(count: int, letter: str = "x") -> str:
    return letter * count


@task
def numbers(count: int) -> list[int]:
    return list(range(count))


@task
def noise(size_bytes: int, seed: int = 0) -> str:
    """A text that can't be compressed to less than half of it."""
    return hashlib.shake_256(str(seed).encode()).hexdigest(size_bytes // 2)


@task
def noise_when_there(size_bytes: int, path: str, started: str) -> str:
    wait_for_file(path, started=started)
    return str(noise(size_bytes))


@task
def lengths(values: list[Any]) -> list[int]:
    return [len(value) for value in values]


@task
def length(value: Any) -> int:
    return len(value)


@task
def looks_like_a_reference() -> dict[str, Any]:
    return {"agentlink_stored": "0" * 64, "bytes": 7}


@workflow
def gathered(count: int, size: int) -> Any:
    return chord([letters.s(size, chr(ord("a") + number)) for number in range(count)], lengths.s())


@workflow
def large_then_waits(size_bytes: int, path: str) -> Any:
    """A step whose result is large, and one that waits for a file."""
    return chain(noise.si(size_bytes), wait_for_file.si(path))
