"""The same on Dask's LocalCluster, run by a Python that has Dask: waits for a line on its standard input, then prints
the seconds it took and the number of tasks that failed or were not done in time.

python packing_dask.py PROCESSES THREADS SEED
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from distributed import Client, LocalCluster, as_completed

from benchmarks.packing_load import KINDS, LIMIT_BYTES, OF_EACH_KIND, hold, order

WITHIN_S = 100


def main() -> None:
    processes, threads, seed = map(int, sys.argv[1:])
    with (
        LocalCluster(
            n_workers=processes,
            threads_per_worker=threads,
            memory_limit=LIMIT_BYTES // processes,
            dashboard_address=None,
        ) as cluster,
        Client(cluster) as client,
    ):
        print("ready", flush=True)
        sys.stdin.readline()
        started_at = time.perf_counter()
        waiting = {client.submit(hold, *KINDS[kind], pure=False) for kind in order(seed)}
        done = 0
        with contextlib.suppress(TimeoutError):  # none of its workers may be left
            # A result stays with the worker that has it, and is lost with that one, until it is fetched.
            for future, _ in as_completed(list(waiting), with_results=True, raise_errors=False, timeout=WITHIN_S):
                done += future.status == "finished"
                waiting.discard(future)
                future.release()
        print(time.perf_counter() - started_at, OF_EACH_KIND * len(KINDS) - done, flush=True)


if __name__ == "__main__":
    main()
