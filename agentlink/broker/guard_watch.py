"""What the resource guard wants to know of the broker: its memory, its process, and what a person has asked for.

Orders (a pause, other limits) are kept in the broker, so that they outlive workers and reach those that start later.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from dataclasses import asdict

import redis
from redis.client import Pipeline

from resource_guard.steering import Orders

ORDERS_KEY = "agentlink:guard:orders"

_ASK_EVERY_S = 1.0
# As long as what else is known of the past: nobody who paused a machine years ago means it still.
_KEPT_S = 90 * 86400


class GuardWatch:
    """Asks once a second, in a thread of its own.

    `top_pid` is the process that all of AgentLink here descends from, but an embedded broker, which outlives it.
    """

    def __init__(self, make_client: Callable[[], redis.Redis], *, top_pid: int, embedded: bool) -> None:
        self._make_client = make_client
        self._embedded = embedded
        self._memory: tuple[int, int] | None = None
        self.root_pids = [top_pid]
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, follow: Callable[[Orders], None]) -> None:
        """Ask, and go on asking. A broker that is away is asked again; what was ordered stays ordered meanwhile."""
        self._ask(follow)
        self._ending.clear()
        self._thread = threading.Thread(target=self._keep, args=(follow,), name="guard-watch", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Cease to ask."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def memory(self) -> tuple[int, int] | None:
        """Bytes the broker's data takes and may take; None while that is not known, or without a limit."""
        return self._memory

    def order(self, change: Callable[[Orders], Orders]) -> Orders:
        """Change the orders for all workers, those to come among them; return them."""
        return give(self._make_client(), change)

    def _keep(self, follow: Callable[[Orders], None]) -> None:
        while not self._ending.wait(_ASK_EVERY_S):
            self._ask(follow)

    def _ask(self, follow: Callable[[Orders], None]) -> None:
        try:
            with self._make_client().pipeline(transaction=False) as pipe:
                pipe.info("memory")
                pipe.info("server")
                pipe.get(ORDERS_KEY)
                memory, server, orders = pipe.execute()
        except redis.RedisError:
            self._memory = None
            return
        self._memory = (memory["used_memory"], memory["maxmemory"]) if memory["maxmemory"] else None
        if self._embedded:
            self.root_pids[1:] = [server["process_id"]]
        follow(_orders(orders))


def ordered(client: redis.Redis) -> Orders:
    """What is asked of all workers."""
    return _orders(client.get(ORDERS_KEY))


def give(client: redis.Redis, change: Callable[[Orders], Orders]) -> Orders:
    """Ask something of all workers, given what is asked already; return all that is asked now."""

    def write(pipe: Pipeline) -> Orders:
        orders = change(ordered(pipe))
        pipe.multi()
        pipe.set(ORDERS_KEY, json.dumps(asdict(orders)), ex=_KEPT_S)
        return orders

    # Two people may ask at once, and one must not undo what the other has asked for: whoever comes second begins anew.
    return client.transaction(write, ORDERS_KEY, value_from_callable=True)  # type: ignore[arg-type, return-value]


def _orders(value: bytes | str | None) -> Orders:
    with contextlib.suppress(ValueError, TypeError, AttributeError):  # of a version to come, or written by hand
        said = json.loads(value) if value else {}
        until, limits = said.get("until"), said.get("limits", {})
        said["until"] = None if until is None else float(until)
        said["limits"] = {name: float(limit) for name, limit in limits.items()}
        return Orders(**said)
    return Orders()
