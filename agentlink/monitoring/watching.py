"""What each worker does for monitoring: it tells how it is, once a second; one of them also writes and sends on.

The one that holds the lease writes the history and sends events on, until it ends or is silent for three seconds.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import redis
from celery import Celery

from agentlink.broker import event_log
from agentlink.monitoring import history, readings, workers
from agentlink.monitoring.sending import Sender
from agentlink.monitoring.status import WorkerStatus
from agentlink.monitoring.writing import Writer
from agentlink.settings import load
from tasks.events import take_left_out

#: Who writes the history and sends events on.
LEADER_KEY = "agentlink:monitoring:leader"

_LEADS_MS = 3000
_SEND_EVERY_S = 0.2
# Workers tell how they are in the middle of the second, by the broker's clock: so none gets two of them, or none.
_MIDDLE_S = 0.5
# A worker that ends waits no longer for a broker that does not answer.
_END_WAITS_S = 1.0
_NEVER_S = 3600.0

#: Whether this worker leads, or does from now on. KEYS[1] the lease, ARGV[1] the worker, ARGV[2] for how long, in ms.
_LEAD = """
local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
#: Have another lead at once.
_RESIGN = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class Watch:
    """What one worker does."""

    def __init__(self, app: Celery, status: WorkerStatus, guard_events: Any) -> None:
        self._app, self._status, self._guard_events = app, status, guard_events
        self._leads = False
        self._writer: Writer | None = None
        self._sender: Sender | None = None
        self._tell_at = 0.0
        self._written_s = 0
        self._ended = False
        # The worker's end is told by another thread than all else.
        self._telling = threading.Lock()

    def look(self) -> float:
        """Do what is due; in how many seconds to come again."""
        with self._telling:
            return _NEVER_S if self._ended else self._look(self._app.backend.client)

    def end(self) -> None:
        """The worker takes nothing more: another may lead, and nobody is to miss this one."""
        self._ended = True
        if not self._telling.acquire(timeout=_END_WAITS_S):
            return  # the broker does not answer; that this one has ended is noticed in some seconds
        try:
            client = self._app.backend.client
            self._tell_guard_events(client)
            client.eval(_RESIGN, 1, LEADER_KEY, self._status.name)
            workers.gone(client, self._status.name)
        except redis.RedisError:
            return  # the same
        finally:
            self._telling.release()

    def count_last(self) -> None:
        """The worker has ended its tasks: they count."""
        with contextlib.suppress(redis.RedisError):
            workers.count(self._app.backend.client, self._status.counted(self._status.now()))

    def _look(self, client: redis.Redis) -> float:
        self._tell_guard_events(client)
        try:
            if time.monotonic() >= self._tell_at:
                self._tell(client)
            if self._leads:
                self._send(client)
        except Exception:
            self._follow()  # what is known of the broker may be wrong by now
            raise
        left_s = self._tell_at - time.monotonic()
        return max(0.01, min(left_s, _SEND_EVERY_S) if self._leads else left_s)

    def _tell(self, client: redis.Redis) -> None:
        status = self._status.now()
        with client.pipeline(transaction=False) as pipe:
            workers.tell(pipe, self._status.name, status, self._status.counted(status))
            pipe.eval(_LEAD, 1, LEADER_KEY, self._status.name, _LEADS_MS)
            pipe.time()
            *_, leads, (seconds, microseconds) = pipe.execute()
        self._status.told()
        if left_out := take_left_out():
            facts = {"second": seconds, "left_out": left_out, "sample": event_log.SAMPLE, "worker": self._status.name}
            event_log.tell(client, [("step-summary", facts)])
        to_middle_s = _MIDDLE_S - microseconds / 1e6
        self._tell_at = time.monotonic() + (to_middle_s if to_middle_s > 0.1 else 1 + to_middle_s)
        if not leads:
            self._follow()
            return
        if not self._leads:
            broker_bytes = client.info("memory")["maxmemory"]
            event_log.keep_settings(client, load().events, load().events_rate, broker_bytes)
        self._leads = True
        if seconds != self._written_s:
            self._write(client, seconds)
            self._written_s = seconds

    def _write(self, client: redis.Redis, at_s: int) -> None:
        if self._writer is None:
            self._writer = Writer(client)
        writer, statuses, counted = self._writer, workers.read(client), workers.counts(client)
        names = {self._app.conf.task_default_queue, *history.queues_among(writer.columns)}
        names.update(*(status["queues"] for status in statuses.values()))
        values = readings.of_workers(list(statuses.values())) | readings.of_broker(client, sorted(names))
        if writer.counted:
            values |= readings.of_counts(writer.counted, counted)
        if self._sender is not None:
            values[history.EVENT_LAG_S], self._sender.lag_s = self._sender.lag_s, 0.0
        writer.write(client, at_s, values, counted)

    def _send(self, client: redis.Redis) -> None:
        if self._sender is None:
            self._sender = Sender(self._app, client, self._status.name)
        self._sender.send(client)

    def _follow(self) -> None:
        self._leads, self._writer = False, None
        if self._sender is not None:
            self._sender.close()
            self._sender = None

    def _tell_guard_events(self, client: redis.Redis) -> None:
        if self._guard_events is None or not (noted := self._guard_events.take()):
            return
        try:
            event_log.tell(client, [(kind, {**facts, "worker": self._status.name}) for kind, facts in noted])
        except redis.RedisError:
            self._guard_events.give_back(noted)
            raise
