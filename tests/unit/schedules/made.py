"""A made clock, a broker that notes what is fired, and schedules put there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import fakeredis
import pytest

from agentlink.broker.calls import Command
from agentlink.broker.errors import BrokerUnavailable, Overtaken
from agentlink.broker.publishing import _PUBLISH
from tests.integration import declaring, sample
from workflows import firing, schedules
from workflows.schedule_definition import Definition, define

WORKFLOW, MONDAY = sample.sums.name, declaring.each_monday.name
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400
#: A Thursday, 12:00 UTC.
NOON_S = 1_795_694_400


class Clock:
    """The machine's, and the server's."""

    def __init__(self) -> None:
        self.now_s = float(NOON_S)

    def __call__(self) -> float:
        return self.now_s


class Broker:
    """Takes the messages of runs as the real one does: by the same script, with the commands that go along."""

    def __init__(self, client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
        self._publish = client.register_script(_PUBLISH)
        self.fired: list[tuple[str, str]] = []
        self.away = False
        monkeypatch.setattr(firing, "fire", self._fire)
        monkeypatch.setattr(firing, "declared_by", lambda task: None)  # modules of other tests are imported too

    def _fire(self, definition: Definition, run_id: str, also: Iterable[Command]) -> None:
        if self.away:
            raise BrokerUnavailable("redis://", "it is away")
        firing.workflow_task(definition.workflow)
        commands = json.dumps([[str(part) for part in command] for command in also])
        if self._publish(keys=["", "cpu"], args=["", "", commands, "", "message", "", "wake"]) != 1:
            raise Overtaken
        self.fired.append((json.dumps(definition.args), run_id))


def put(client: fakeredis.FakeRedis, name: str = "s", **words: Any) -> None:
    task = words.pop("workflow", WORKFLOW)
    timing = words if words.keys() & {"every", "schedule"} else words | {"every": "1m"}
    schedules.put(client, name, define(name, task, [name], **timing))


def next_s(client: fakeredis.FakeRedis, name: str = "s") -> float | None:
    at = schedules.read(client, name).next_at
    return None if at is None else at - NOON_S
