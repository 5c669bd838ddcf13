"""A broker without a server, and its workers' leases: what the scripts make of messages."""

from __future__ import annotations

import json
from functools import partial

import fakeredis

from agentlink.broker import queues
from agentlink.broker.lease import DELAYED_PREFIX, RUNS_STEP, TURNS, Lease
from agentlink.broker.limits import Limit
from agentlink.broker.transport import Channel

SEP = Channel.sep
LISTS = [
    name
    for step in reversed(range(RUNS_STEP))
    for name in (queues.keys("cpu")[step], queues.keys("cpu")[step + RUNS_STEP])
]


class Broker:
    """A broker, its workers' leases, and messages named by their ids."""

    def __init__(self) -> None:
        self.server = fakeredis.FakeServer(server_type="valkey")
        self.client = fakeredis.FakeRedis(server=self.server)

    def lease(self, length_s: float = 30.0) -> Lease:
        lease = Lease(partial(fakeredis.FakeRedis, server=self.server), length_s=length_s, separator=SEP)
        lease.worker = "made up"  # so that no thread renews it
        lease._claim(self.client)
        return lease

    def send(
        self, limit: Limit | None, *ids: str, priority: int = 0, root: str | None = None, queue: str = "cpu"
    ) -> None:
        for task_id in ids:
            message = json.dumps({"body": '"agentlink_limits"', "headers": {"id": task_id}, "properties": {}})
            step = priority + (RUNS_STEP if root else 0)
            key = queues.keys(queue)[step] + (f"\1{root}" if root else "")
            text = limit.marked(message, task_id, priority) if limit else message
            self.client.eval(TURNS + "enqueue(KEYS[1], ARGV[1])", 1, key, text)

    def take(self, lease: Lease, wanted: int = 1, queue: str = "cpu") -> dict[str, str]:
        """The tags of what is taken, by the ids."""
        lists = [name.replace("cpu", queue) for name in LISTS]
        taken, self.next_due_s = lease.exchange(self.client, lists, [DELAYED_PREFIX + queue], wanted)
        self.messages = [json.loads(one.message) for one in taken]
        return {json.loads(one.message)["headers"]["id"]: lease.tag(one) for one in taken}

    def done(self, lease: Lease, tag: str) -> None:
        lease.acknowledge(tag)

    def left(self) -> list[str]:
        """What the limits have left in the broker."""
        return sorted(key.decode() for key in self.client.keys("agentlink:limit*") + self.client.keys("*places*"))
