"""A row of the history: made of what each worker has told of itself, and of what there is in the broker."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import redis

from agentlink.broker import dead_letters, queues
from agentlink.broker.lease import IN_FLIGHT_PREFIX, LEASES_KEY
from agentlink.monitoring import history
from workflows.states import RunState
from workflows.store import INDEX_KEY

_SCRIPT = resources.files(__package__).joinpath("readings.lua").read_text("utf-8")

#: Of a guard's resource, the series of its value and of its limit.
_OF_TREES = {
    "memory": (history.MEMORY_BYTES, history.MEMORY_LIMIT_BYTES),
    "processes": (history.PROCESSES, history.PROCESSES_LIMIT),
}
_OF_MACHINE = {
    "memory_free": (history.MEMORY_FREE_BYTES, history.MEMORY_FREE_LIMIT_BYTES, min),
    "disk_free": (history.DISK_FREE_BYTES, history.DISK_FREE_LIMIT_BYTES, min),
    "disk_quota": (history.DISK_QUOTA_BYTES, history.DISK_QUOTA_LIMIT_BYTES, max),
}
#: What workers count, by the series it is told in; see `workers.COUNTS`.
_COUNTED = {
    "succeeded": (history.TASKS_DONE, 1.0),
    "failed": (history.TASKS_FAILED, 1.0),
    "retried": (history.TASKS_RETRIED, 1.0),
    "evictions": (history.EVICTIONS, 1.0),
    "pauses": (history.PAUSES, 1.0),
    "paused_ms": (history.PAUSED_S, 0.001),
}


def of_workers(statuses: Collection[Mapping[str, Any]]) -> dict[str, float]:
    """What the workers see. Those that one process has started see the same, and count once."""
    values: dict[str, float] = {history.WORKERS: len(statuses)}
    if not statuses:
        return values
    paused = [status["state"] == "paused" for status in statuses]
    values[history.PAUSED_FRACTION] = sum(paused) / len(statuses)
    for name, series in (("running", history.TASKS_RUNNING), ("waiting", history.TASKS_WAITING)):
        values[series] = sum(status[name] for status in statuses)
    values[history.RESERVED_BYTES] = sum(status["tasks"].get("reserved_bytes", 0) for status in statuses)
    for resource, (value_of, limit_of) in _OF_TREES.items():
        trees = _by_tree(statuses, resource)
        if trees:
            values[value_of] = sum(value for value, _ in trees.values())
            values[limit_of] = sum(limit for _, limit in trees.values())
    if trees := _by_tree(statuses, "cpu"):
        machines = len({host for host, _ in trees})
        values[history.CPU_FRACTION] = sum(value for value, _ in trees.values()) / machines
        values[history.CPU_LIMIT_FRACTION] = max(limit for _, limit in trees.values())
    for resource, (value_of, limit_of, worst) in _OF_MACHINE.items():
        seen = [reading for status in statuses if (reading := _reading(status, resource))]
        if seen:
            values[value_of], values[limit_of] = worst(seen)
    return values


def of_broker(client: redis.Redis, queue_names: Sequence[str]) -> dict[str, float]:
    """What there is in the broker, and what its data takes."""
    keys = [LEASES_KEY, f"{INDEX_KEY}:{RunState.QUEUED}", f"{INDEX_KEY}:{RunState.RUNNING}", dead_letters.INDEX_KEY]
    lists = json.dumps([queues.keys(name) for name in queue_names])
    with client.pipeline(transaction=False) as pipe:
        pipe.eval(_SCRIPT, len(keys), *keys, IN_FLIGHT_PREFIX, lists)
        pipe.info("memory")
        pipe.time()
        (in_flight, queued, running, letters, *waiting), memory, (seconds, microseconds) = pipe.execute()
    since, now = queues.waiting_since(client, queue_names), seconds + microseconds / 1e6
    values = {
        history.IN_FLIGHT: in_flight,
        history.RUNS_QUEUED: queued,
        history.RUNS_RUNNING: running,
        history.DEAD_LETTERS: letters,
        history.BROKER_MEMORY_BYTES: memory["used_memory"],
    }
    if memory["maxmemory"]:
        values[history.BROKER_MEMORY_LIMIT_BYTES] = memory["maxmemory"]
    for name, depth in zip(queue_names, waiting, strict=True):
        values[history.queue_depth(name)] = depth
        values[history.queue_age(name)] = max(0.0, now - since.get(name, now))
    return values


def of_counts(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, float]:
    """What was counted since; all of it, where counting has begun anew."""
    return {
        series: (now[name] - before.get(name, 0) if now[name] >= before.get(name, 0) else now[name]) * factor
        for name, (series, factor) in _COUNTED.items()
    }


def _by_tree(statuses: Iterable[Mapping[str, Any]], resource: str) -> dict[tuple[str, int], tuple[float, float]]:
    trees: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for status in statuses:
        if reading := _reading(status, resource):
            trees[status["host"], status["tree_pid"]].append(reading)
    most: Callable[[list[tuple[float, float]]], tuple[float, float]] = max
    return {tree: most(seen) for tree, seen in trees.items()}


def _reading(status: Mapping[str, Any], resource: str) -> tuple[float, float] | None:
    """Value and limit."""
    reading = status["resources"].get(resource)
    return (reading["value"], reading["limit"]) if reading and not reading["unit"] else None
