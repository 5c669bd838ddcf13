"""A caller, in a process of its own: prints the seconds that each of its calls took, as JSON.

python -m benchmarks.workflow_client MODULE delay|ping|chord|run WIDTH COUNT

`delay` starts runs on an idle system and waits for each to end, `ping` asks the broker for nothing as often, `chord`
and `run` go from the call to the result of a chord of WIDTH no-ops: as a plain canvas, and as a workflow.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from celery import chord

TIMEOUT_S = 600


def main() -> None:
    module_name, way, width, count = sys.argv[1:]
    module = importlib.import_module(module_name)
    module.noop.delay(0).get(timeout=TIMEOUT_S)  # connects
    ways: dict[str, Callable[[Any, int, int], Iterator[float]]] = {
        "delay": delays, "ping": pings, "chord": chords, "run": runs,
    }  # fmt: skip
    print(json.dumps(list(ways[way](module, int(width), int(count)))))


def delays(module: Any, width: int, count: int) -> Iterator[float]:
    for _ in range(count):
        started_at = time.perf_counter()
        run = module.wide.delay(width)
        yield time.perf_counter() - started_at
        if width < 1000:
            run.get(timeout=TIMEOUT_S)
        else:
            run.cancel()  # what it would do is measured elsewhere


def pings(module: Any, width: int, count: int) -> Iterator[float]:
    client = module.noop.app.backend.client
    for _ in range(count):
        started_at = time.perf_counter()
        client.ping()
        yield time.perf_counter() - started_at


def chords(module: Any, width: int, count: int) -> Iterator[float]:
    for _ in range(count):
        started_at = time.perf_counter()
        result = chord([module.noop.s(number) for number in range(width)], module.count.s()).apply_async()
        assert result.get(timeout=TIMEOUT_S) == width
        yield time.perf_counter() - started_at


def runs(module: Any, width: int, count: int) -> Iterator[float]:
    for _ in range(count):
        started_at = time.perf_counter()
        assert module.wide.delay(width).get(timeout=TIMEOUT_S) == width
        yield time.perf_counter() - started_at


if __name__ == "__main__":
    main()
