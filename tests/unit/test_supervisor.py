"""How often `agentlink up` looks after a broker that is in trouble."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import NoReturn

import pytest

from agentlink.broker import server
from agentlink.broker.errors import BrokerStartError
from agentlink.settings import Settings
from agentlink.supervisor import BACKOFF_MAX_S, BROKER_CHECK_S, Supervisor


def pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: int | None) -> list[float]:
    """How long it waits after each of eight looks at a broker that does not answer."""

    def does_not_answer(*_: object, **__: object) -> NoReturn:
        raise BrokerStartError("it does not answer", "look into its log")

    monkeypatch.setattr(server, "ensure_running", does_not_answer)
    monkeypatch.setattr(server, "holder", lambda _: holder)
    supervisor, found = Supervisor(Settings(home=tmp_path), on_ready=print), []
    for _ in range(8):
        supervisor._look_after_broker(math.inf)
        found.append(round(supervisor.broker_check_at - time.monotonic(), 1))
    return found


def test_one_that_hangs_is_looked_at_each_second_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be killed any moment, and is started again at once then."""
    assert max(pauses(tmp_path, monkeypatch, holder=42)) <= BROKER_CHECK_S
    assert len(caplog.records) == 1


def test_one_that_can_not_be_started_is_tried_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = pauses(tmp_path, monkeypatch, holder=None)
    assert found == sorted(found)
    assert (found[0], found[-1]) == (1.0, BACKOFF_MAX_S)
