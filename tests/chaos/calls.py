"""Calls from outside, made while everything breaks: some are refused, and those must never run."""

from __future__ import annotations

import random
import threading
import time
import traceback
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from celery import Signature, group

from agentlink.broker.errors import BrokerUnavailable
from tests.chaos import work
from tests.integration import sample
from workflows import WorkflowRun

#: Calls a second: slow enough for a few dozen faults to happen meanwhile.
RATE = (15.0, 60.0)
SPREAD_S = 40.0
MAX_TASK_S = 0.05
MAX_COUNTDOWN_S = 4.0


@dataclass
class Calls:
    """Makes calls in a thread until `count` tasks are accepted; what became of each is kept."""

    count: int
    ledger: Path
    rng: random.Random
    #: Numbers of accepted tasks, and their ids.
    accepted: dict[int, str] = field(default_factory=dict)
    #: Numbers of tasks whose call raised.
    refused: set[int] = field(default_factory=set)
    #: Workflows accepted, and what each must answer.
    runs: list[tuple[WorkflowRun, int]] = field(default_factory=list)
    #: Of calls that raised anything but `BrokerUnavailable`.
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._number = 0
        self._stopped = False
        self._thread = threading.Thread(target=self._make_all, name="calls")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        self._thread.join()

    @property
    def going_on(self) -> bool:
        return self._thread.is_alive()

    def _make_all(self) -> None:
        rate = min(max(self.count / SPREAD_S, RATE[0]), RATE[1])
        began_at = time.monotonic()
        while len(self.accepted) < self.count and not self._stopped:
            try:
                self.rng.choices([self._one, self._several, self._workflow], [90, 5, 5])[0]()
            except Exception:  # noqa: BLE001 - a call that is refused has an error of its own
                self.errors.append(f"a call failed with {traceback.format_exc()}")
            # Calls come at a steady rate.
            time.sleep(max(0.0, began_at + len(self.accepted) / rate - time.monotonic()))

    def _one(self) -> None:
        self._make(1)

    def _several(self) -> None:
        """All of a group are accepted, or none is."""
        self._make(self.rng.randint(2, 20))

    def _make(self, size: int) -> None:
        ids = {self._number + index: str(uuid.UUID(int=self.rng.getrandbits(128))) for index in range(size)}
        self._number += size
        signatures = [self._signature(number, task_id) for number, task_id in ids.items()]
        try:
            (signatures[0] if size == 1 else group(signatures)).apply_async()
        except BrokerUnavailable:
            self.refused |= ids.keys()
        else:
            self.accepted |= ids

    def _signature(self, number: int, task_id: str) -> Signature:
        options: dict[str, object] = {"task_id": task_id}
        if self.rng.random() < 0.5:
            options["priority"] = self.rng.randint(0, 9)
        if self.rng.random() < 0.2:
            options["countdown"] = self.rng.uniform(0.0, MAX_COUNTDOWN_S)
        duration_s = self.rng.uniform(0.001, MAX_TASK_S)
        signature: Signature = work.enter.si(number, str(self.ledger), duration_s)
        return signature.set(**options)

    def _workflow(self) -> None:
        size = self.rng.randint(1, 6)
        try:
            run = sample.sums.delay(size)
        except BrokerUnavailable:
            return
        self.runs.append((run, sum(range(1, size + 1)) + 1000))
