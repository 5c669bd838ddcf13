"""How a worker is, as it tells it of itself: from what its guard has seen last, not by looking anew."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from celery.worker import state

from agentlink.broker.outcomes import Outcome, ends

#: What is told of a worker without a guard.
_UNGUARDED: dict[str, Any] = {"state": "ok", "reason": "", "since": None, "resources": {}, "tasks": {}, "counts": {}}


class WorkerStatus:
    """One worker's, by its `celery.worker.WorkController`."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._counts: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        self._paused_ms = 0.0
        self._looked_at = time.monotonic()

    @property
    def name(self) -> str:
        """The worker's name."""
        return str(self._worker.hostname)

    def now(self) -> dict[str, Any]:
        """How it is: what `celery inspect guard` says, and what it takes tasks from."""
        worker = self._worker
        guard = getattr(worker, "resource_guard", None)
        status = _UNGUARDED | (guard.status() if guard else {})
        tasks = status["tasks"]
        return status | {
            "name": self.name,
            "at": time.time(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "tree_pid": worker.guard_broker.root_pids[0] if guard else os.getpid(),
            "guard": guard is not None,
            "queues": sorted(worker.app.amqp.queues.consume_from),
            "concurrency": worker.concurrency,
            "running": tasks.get("running", len(state.active_requests)),
            "waiting": tasks.get("waiting", 0),
        }

    def counted(self, status: Mapping[str, Any]) -> Counter[str]:
        """What it has counted, by this status, since `told` was last called; see `workers.COUNTS`."""
        now, before_at = time.monotonic(), self._looked_at
        self._looked_at = now
        if status["state"] == "paused":
            self._paused_ms += (now - before_at) * 1000
        ended = ends.totals()
        self._counts = Counter(
            succeeded=ended[Outcome.SUCCEEDED],
            failed=ended[Outcome.FAILED] + ended[Outcome.BURIED],
            retried=ended[Outcome.RETRIED],
            revoked=ended[Outcome.REVOKED],
            pauses=status["counts"].get("pauses", 0),
            paused_ms=int(self._paused_ms),
            evictions=status["tasks"].get("counts", {}).get("evicted", 0),
        )
        return self._counts - self._told

    def told(self) -> None:
        """What `counted` has returned last is told: it is not returned again."""
        self._told = self._counts
