"""Every metric there is: its name, what it means, its labels, once. Units are in the names, as Prometheus wants them.

Labels are bounded: workers are those that live; of tasks and workflows 100 names are told apart, further ones are
"other" (see `agentlink.broker.outcomes`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

PREFIX = "agentlink_"


class Kind(Enum):
    """What Prometheus makes of a metric."""

    GAUGE = GaugeMetricFamily
    COUNTER = CounterMetricFamily
    HISTOGRAM = HistogramMetricFamily


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric, without the prefix; a counter's name ends with `_total` where it is read."""

    name: str
    kind: Kind
    says: str
    labels: tuple[str, ...] = ()


_G, _C, _H = Kind.GAUGE, Kind.COUNTER, Kind.HISTOGRAM
_WORKER, _RESOURCE, _TASK, _WORKFLOW, _QUEUE = ("worker",), ("worker", "resource"), ("task",), ("workflow",), ("queue",)

DEFINITIONS = (
    # -- The broker, and what waits in it.
    Definition("broker_up", _G, "1 if the broker answers; if it does not, nothing else is told."),
    Definition("broker_memory_bytes", _G, "What the broker's data takes."),
    Definition("broker_memory_limit_bytes", _G, "What it may take; absent where there is no limit."),
    Definition("broker_clients", _G, "Connections to the broker."),
    Definition("leases", _G, "Processes that take messages and are heard of."),
    Definition("messages_in_flight", _G, "Messages that workers have taken and are not done with."),
    Definition("queue_messages", _G, "Messages: waiting; until their time; for a place of a key.", ("queue", "state")),
    Definition("queue_oldest_age_seconds", _G, "How long a queue's oldest message has waited; 0: none does.", _QUEUE),
    Definition("dead_letters", _G, "Messages that nobody tries any more."),
    Definition("event_lag_seconds", _G, "How old events were when they were sent on; absent while none are."),
    # -- Runs and tasks.
    Definition("runs", _G, "Runs that are known, by their state.", ("state",)),
    Definition("runs_waiting_for_signal", _G, "Runs in which a step waits for a signal or a time."),
    Definition("runs_ended", _C, "Runs that have ended.", ("workflow", "state")),
    Definition("run_waiting_seconds", _H, "From a run's call to its start.", _WORKFLOW),
    Definition("run_running_seconds", _H, "From a run's start to its end.", _WORKFLOW),
    Definition("tasks_running", _G, "Tasks that run.", _TASK),
    Definition("tasks_ended", _C, "Attempts that have ended, by what became of them.", ("task", "outcome")),
    Definition("task_waiting_seconds", _H, "From when a task was queued to when a process began it.", _TASK),
    Definition("task_running_seconds", _H, "How long attempts took that succeeded, failed or are tried again.", _TASK),
    # -- Each worker that lives, and its guard.
    Definition("workers", _G, "Workers that tell how they are."),
    Definition("worker_info", _G, "A worker, its machine and its process.", ("worker", "host", "pid")),
    Definition("worker_told_timestamp_seconds", _G, "When a worker last told how it is.", _WORKER),
    Definition("worker_tasks", _G, "Tasks a worker has: running, or waiting for room.", ("worker", "state")),
    Definition("worker_slots", _G, "Tasks a worker runs at a time at most, now.", _WORKER),
    Definition("worker_slots_max", _G, "The same while nothing is short.", _WORKER),
    Definition("worker_room_bytes", _G, "Memory for all tasks of a worker together; absent without a limit.", _WORKER),
    Definition("worker_reserved_bytes", _G, "What of it is reserved for those that run.", _WORKER),
    Definition("worker_paused", _G, "1 while the guard lets nothing start.", _WORKER),
    Definition("worker_pauses", _C, "Pauses since the worker's start.", _WORKER),
    Definition("worker_paused_seconds", _C, "Seconds in pauses since the worker's start.", _WORKER),
    Definition("worker_evictions", _C, "Tasks the guard has ended to be run again, since the worker's start.", _WORKER),
    Definition("worker_memory_failures", _C, "Tasks failed for their memory, since the worker's start.", _WORKER),
    Definition("worker_guard_late_seconds", _G, "By how much a look of the guard came late, at most.", _WORKER),
    Definition("worker_resource_level", _G, "0 ok, 1 fewer tasks, 2 none starts, 3 running work is ended.", _RESOURCE),
    Definition("worker_resource_used_ratio", _G, "How much of its limit is used; of a floor: floor/rest.", _RESOURCE),
    Definition("worker_resource_bytes", _G, "Memory or disk: used or, of a floor, left.", _RESOURCE),
    Definition("worker_resource_limit_bytes", _G, "The limit or floor of that.", _RESOURCE),
    Definition("worker_cpu_ratio", _G, "Share of the CPU time that its processes take, mean over 10 s.", _WORKER),
    Definition("worker_cpu_limit_ratio", _G, "What they may take.", _WORKER),
    Definition("worker_processes", _G, "Processes of a worker.", _WORKER),
    Definition("worker_processes_limit", _G, "How many it may have.", _WORKER),
    Definition("worker_stalled_ratio", _G, "Share of 10 s in which some process waited for it.", _RESOURCE),
    # -- This answer.
    Definition("scrape_seconds", _G, "How long it took to gather all this."),
)  # fmt: skip


def sample_names() -> dict[str, Definition]:
    """The names that samples have, as queries use them."""
    endings = {_G: ("",), _C: ("_total",), _H: ("_bucket", "_count", "_sum")}
    return {f"{PREFIX}{one.name}{ending}": one for one in DEFINITIONS for ending in endings[one.kind]}
