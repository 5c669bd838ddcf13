"""A caller, in a process of its own: calls all tasks, waits for all, and prints the seconds that took.

python -m benchmarks.packing_client MODULE SEED
"""

from __future__ import annotations

import importlib
import sys
import time

from benchmarks.packing_load import order


def main() -> None:
    module, seed = sys.argv[1:]
    tasks = importlib.import_module(module).TASKS
    started_at = time.perf_counter()
    results = [tasks[kind].delay() for kind in order(int(seed))]
    for result in results:
        result.get(timeout=600)
    print(time.perf_counter() - started_at)


if __name__ == "__main__":
    main()
