"""A caller, in a process of its own: prints the seconds that each of its calls took, as JSON.

python -m benchmarks.broker_client MODULE singly|grouped|waiting COUNT
"""

from __future__ import annotations

import importlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from celery import group

GROUP_SIZE = 1000
#: Between two calls of an idle worker: long enough for it to be idle again.
PAUSE_S = (0.005, 0.02)


def main() -> None:
    module, way, count = sys.argv[1:]
    noop = importlib.import_module(module).noop
    noop.delay(0).forget()  # connects
    ways: dict[str, Callable[[Any, int], Iterator[float]]] = {
        "singly": singly, "grouped": grouped, "waiting": waiting,
    }  # fmt: skip
    print(json.dumps(list(ways[way](noop, int(count)))))


def singly(noop: Any, count: int) -> Iterator[float]:
    """One call after the other."""
    for number in range(count):
        started_at = time.perf_counter()
        noop.delay(number)
        yield time.perf_counter() - started_at


def grouped(noop: Any, count: int) -> Iterator[float]:
    """`count` groups."""
    for _ in range(count):
        calls = group([noop.s(number) for number in range(GROUP_SIZE)])
        started_at = time.perf_counter()
        calls.apply_async()
        yield time.perf_counter() - started_at


def waiting(noop: Any, count: int) -> Iterator[float]:
    """One call at a time, to its result."""
    for number in range(count):
        started_at = time.perf_counter()
        noop.delay(number).get(timeout=10)
        yield time.perf_counter() - started_at
        time.sleep(random.uniform(*PAUSE_S))


if __name__ == "__main__":
    main()
