"""Metrics for Prometheus: made at each scrape from what the broker knows, so that nothing is left of what is gone.

Workers are not asked: each tells how it is once a second (see `workers`). What there is is in `metric_list`.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import redis
from kombu.exceptions import OperationalError
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from redis.backoff import NoBackoff
from redis.retry import Retry

from agentlink.broker import dead_letters, outcomes, queues
from agentlink.broker.lease import LEASES_KEY
from agentlink.broker.outcomes import BOUNDS_S, Outcomes, Seconds
from agentlink.monitoring import history, workers
from agentlink.monitoring.metric_list import DEFINITIONS, PREFIX
from tasks import app
from workflows import signals, store

#: What the text is, for those who ask by HTTP.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Flower asks in the loop that answers everybody: a broker that does not answer is not waited for.
_PATIENCE_S = 1.0
_LEVELS = ("ok", "throttle", "pause", "evict")
_BYTES = ("memory", "memory_free", "disk_free", "disk_quota", "broker_memory")
# More queues than this are one, "other".
_QUEUES_MAX = 50
# Events were last sent on at most so long ago, or it is not known how late they are.
_LAG_KNOWN_S = 5


def impatient_client() -> redis.Redis:
    """A client of the broker that gives up soon."""
    patience = {"socket_timeout": _PATIENCE_S, "socket_connect_timeout": _PATIENCE_S, "retry": Retry(NoBackoff(), 0)}
    client: redis.Redis = app.backend._create_client(**(app.backend.connparams | patience))
    return client


class Metrics(Collector):
    """All metrics of one AgentLink, for a registry of prometheus_client."""

    def __init__(self, make_client: Callable[[], redis.Redis] = impatient_client) -> None:
        self._make_client = make_client
        self._client: redis.Redis | None = None

    def describe(self) -> Iterable[Metric]:
        """Their names, so that a registry need not ask the broker as it gets them."""
        return _Samples().metrics.values()

    def collect(self) -> Iterable[Metric]:
        """As everything is now."""
        began_at, samples = time.monotonic(), _Samples()
        try:
            if self._client is None:
                self._client = self._make_client()
            _add_all(samples, self._client)
            samples.add("broker_up", 1)
        except (redis.RedisError, OperationalError, OSError):
            samples = _Samples()
            samples.add("broker_up", 0)
        samples.add("scrape_seconds", time.monotonic() - began_at)
        return [metric for metric in samples.metrics.values() if metric.samples]


def text() -> bytes:
    """All metrics, as Prometheus reads them."""
    return generate_latest(registry())


def add_to_flower() -> None:
    """Have Flower's `/metrics` tell these too. Doing it twice changes nothing."""
    with contextlib.suppress(ValueError):  # they are there
        REGISTRY.register(Metrics())


def registry() -> CollectorRegistry:
    """One that has these metrics and no others."""
    alone = CollectorRegistry()
    alone.register(Metrics())
    return alone


class _Samples:
    """Gathers values, each by its metric's name."""

    def __init__(self) -> None:
        self.metrics: dict[str, Any] = {
            one.name: one.kind.value(PREFIX + one.name, one.says, labels=one.labels) for one in DEFINITIONS
        }

    def add(self, name: str, value: float | None, *labels: object) -> None:
        """One sample; None: it is not known."""
        if value is not None:
            self.metrics[name].add_metric([str(label) for label in labels], value)

    def add_seconds(self, name: str, seconds: Seconds, *labels: str) -> None:
        """A histogram: Prometheus wants the counts of buckets added up."""
        bounds, so_far, buckets = [*map(str, map(float, BOUNDS_S)), "+Inf"], 0, []
        for bound, count in zip(bounds, seconds.buckets, strict=True):
            so_far += count
            buckets.append((bound, so_far))
        self.metrics[name].add_metric(labels, buckets, seconds.sum_s)


def _add_all(samples: _Samples, client: redis.Redis) -> None:
    statuses = workers.read(client)
    _add_broker(samples, client)
    _add_queues(samples, client, statuses)
    _add_ends(samples, client)
    _add_running(samples, statuses)
    samples.add("workers", len(statuses))
    for name, status in statuses.items():
        _add_worker(samples, name, status)


def _add_broker(samples: _Samples, client: redis.Redis) -> None:
    with client.pipeline(transaction=False) as pipe:
        pipe.info("memory")
        pipe.info("clients")
        pipe.zcard(LEASES_KEY)
        pipe.zcard(signals.INDEX_KEY)
        memory, clients, leases, waiting = pipe.execute()
    samples.add("broker_memory_bytes", memory["used_memory"])
    samples.add("broker_memory_limit_bytes", memory["maxmemory"] or None)
    samples.add("broker_clients", clients["connected_clients"])
    samples.add("leases", leases)
    samples.add("messages_in_flight", queues.in_flight(client))
    samples.add("dead_letters", dead_letters.count(client))
    samples.add("runs_waiting_for_signal", waiting)
    for state, count in store.count_runs(client).items():
        samples.add("runs", count, state.lower())
    samples.add("event_lag_seconds", _event_lag_s(client))


def _event_lag_s(client: redis.Redis) -> float | None:
    series = history.read(client, [history.EVENT_LAG_S], time.time() - _LAG_KNOWN_S)[history.EVENT_LAG_S]
    return next((value for value in reversed(series.values) if value is not None), None)


def _add_queues(samples: _Samples, client: redis.Redis, statuses: Mapping[str, Mapping[str, Any]]) -> None:
    """Those that workers take from, also if they are gone: what was queued for them is there."""
    names = {app.conf.task_default_queue, *history.queues(client)}
    names.update(*(status["queues"] for status in statuses.values()))
    known = sorted(names)
    since, now = queues.waiting_since(client, known), float("{}.{:06d}".format(*client.time()))
    messages: Counter[tuple[str, str]] = Counter()
    ages: dict[str, float] = {}
    for number, length in enumerate(queues.lengths(client, known)):
        name = length["name"]
        label = name if number < _QUEUES_MAX else "other"
        for state in ("waiting", "delayed", "limited"):
            messages[label, state] += length[state]
        ages[label] = max(ages.get(label, 0.0), now - since.get(name, now))
    for (label, state), count in messages.items():
        samples.add("queue_messages", count, label, state)
    for label, age_s in ages.items():
        samples.add("queue_oldest_age_seconds", age_s, label)


def _add_ends(samples: _Samples, client: redis.Redis) -> None:
    for name, known in outcomes.read(client, "run").items():
        _add_outcomes(samples, "run", name, known)
    for name, known in outcomes.read(client, "task").items():
        _add_outcomes(samples, "task", name, known)


def _add_outcomes(samples: _Samples, kind: str, name: str, known: Outcomes) -> None:
    for outcome, count in known.ended.items():
        samples.add(f"{kind}s_ended", count, name, outcome)
    samples.add_seconds(f"{kind}_waiting_seconds", known.waited, name)
    samples.add_seconds(f"{kind}_running_seconds", known.ran, name)


def _add_running(samples: _Samples, statuses: Mapping[str, Mapping[str, Any]]) -> None:
    running = Counter(one["name"] for status in statuses.values() for one in status["tasks"].get("started", ()))
    told_apart = dict(running.most_common(outcomes.NAMES_MAX))
    for name, count in told_apart.items():
        samples.add("tasks_running", count, name)
    if others := running.total() - sum(told_apart.values()):
        samples.add("tasks_running", others, "other")


def _add_worker(samples: _Samples, name: str, status: Mapping[str, Any]) -> None:
    tasks, counts, paused = status["tasks"], status["counts"], status["state"] == "paused"
    samples.add("worker_info", 1, name, status["host"], status["pid"])
    samples.add("worker_told_timestamp_seconds", status["at"], name)
    samples.add("worker_tasks", status["running"], name, "running")
    samples.add("worker_tasks", status["waiting"], name, "waiting")
    samples.add("worker_slots", tasks.get("slots"), name)
    samples.add("worker_slots_max", tasks.get("slots_most", status["concurrency"]), name)
    samples.add("worker_room_bytes", tasks.get("room_bytes"), name)
    samples.add("worker_reserved_bytes", tasks.get("reserved_bytes"), name)
    if not status["guard"]:
        return
    now_s = max(0.0, status["at"] - status["since"]) if paused else 0.0
    samples.add("worker_paused", int(paused), name)
    samples.add("worker_pauses", counts.get("pauses", 0), name)
    samples.add("worker_paused_seconds", counts.get("paused_ms", 0) / 1000 + now_s, name)
    samples.add("worker_evictions", tasks.get("counts", {}).get("evicted", 0), name)
    samples.add("worker_memory_failures", tasks.get("counts", {}).get("failed", 0), name)
    samples.add("worker_guard_late_seconds", status["latest_s"], name)
    for resource, reading in status["resources"].items():
        _add_reading(samples, name, resource, reading)
    for resource, percent in status["stalled"].items():
        samples.add("worker_stalled_ratio", percent / 100, name, resource)


def _add_reading(samples: _Samples, name: str, resource: str, reading: Mapping[str, Any]) -> None:
    samples.add("worker_resource_level", _LEVELS.index(reading["level"]), name, resource)
    samples.add("worker_resource_used_ratio", reading["fraction"], name, resource)
    value, limit = reading["value"], reading["limit"]
    if resource == "cpu":
        samples.add("worker_cpu_ratio", value, name)
        samples.add("worker_cpu_limit_ratio", limit, name)
    elif resource == "processes":
        samples.add("worker_processes", value, name)
        samples.add("worker_processes_limit", limit, name)
    elif resource in _BYTES and not reading["unit"]:  # else it is inodes
        samples.add("worker_resource_bytes", value, name, resource)
        samples.add("worker_resource_limit_bytes", limit, name, resource)
