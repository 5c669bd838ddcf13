"""Limits by key under a dice: whatever workers do with what they have, and whenever they die."""

from __future__ import annotations

import random
from typing import ClassVar

import pytest

from agentlink.broker.lease import LEASES_KEY, Lease
from agentlink.broker.limits import Limit
from tests.unit.made_broker import Broker


class Simulation:
    """Workers that take, finish, give back and die as a dice says, and what must hold meanwhile."""

    KEYS: ClassVar = {"k": 1, "l": 2, "m": 5}

    def __init__(self, broker: Broker, seed: int) -> None:
        self.broker, self.dice = broker, random.Random(seed)
        self.sent: set[str] = set()
        self.finished: list[str] = []
        self.leases = [broker.lease() for _ in range(3)]
        self.in_hand: dict[Lease, dict[str, str]] = {lease: {} for lease in self.leases}

    def send(self) -> None:
        key = self.dice.choice([*self.KEYS, ""])
        task_id = f"{key}:{len(self.sent)}"
        self.sent.add(task_id)
        limit = Limit(key=key, most=self.KEYS[key]) if key else None
        priority, root = self.dice.choice([0, 0, 5]), self.dice.choice([None, "r", "s"])
        self.broker.send(limit, task_id, priority=priority, root=root, queue=self.dice.choice(["cpu", "io"]))

    def take(self, lease: Lease) -> None:
        taken = self.broker.take(lease, self.dice.randint(1, 4), self.dice.choice(["cpu", "io"]))
        for task_id, tag in taken.items():
            self.in_hand[lease][task_id] = tag
            if self.dice.random() < 0.5:
                lease.started(tag)

    def end_one(self, lease: Lease) -> None:
        if not self.in_hand[lease]:
            return
        task_id = self.dice.choice(sorted(self.in_hand[lease]))
        tag = self.in_hand[lease].pop(task_id)
        end = self.dice.choice(["finish", "finish", "give back", "die", "evict"])
        if end == "finish":
            lease.acknowledge(tag)
            self.finished.append(task_id)
        elif end == "evict":
            lease.give_back_evicted(tag, 1, 1000)
        else:
            lease.give_back(tag, counted=end == "die")

    def kill(self, lease: Lease) -> None:
        lease.exchange(self.broker.client, (), (), 0)  # what it has said of those that finished was heard
        self.broker.client.zadd(LEASES_KEY, {lease.worker: 1})
        self.leases.remove(lease)
        del self.in_hand[lease]
        heir = self.broker.lease()
        self.leases.append(heir)
        self.in_hand[heir] = {}

    def check(self) -> None:
        for key, most in self.KEYS.items():
            running = [it for hand in self.in_hand.values() for it in hand if it.startswith(f"{key}:")]
            assert len(running) <= most


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_limits_hold_and_each_message_is_finished_once(seed: int) -> None:
    broker = Broker()
    it = Simulation(broker, seed)
    for turn in range(400):
        lease = it.dice.choice(it.leases)
        if turn < 250 and it.dice.random() < 0.4:
            it.send()
        it.dice.choices([it.take, it.end_one, it.kill], weights=[10, 10, 1])[0](lease)
        it.check()
    for _ in range(20_000):
        if len(it.finished) == len(it.sent):
            break
        lease = it.dice.choice(it.leases)
        it.take(lease)
        it.end_one(lease)
        it.check()
    assert sorted(it.finished) == sorted(it.sent)
    for lease in it.leases:
        lease.exchange(broker.client, (), (), 0)
    assert broker.left() == []
