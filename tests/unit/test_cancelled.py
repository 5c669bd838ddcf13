"""Which processes are asked to end as a run is cancelled."""

from __future__ import annotations

import signal
import time
from types import SimpleNamespace
from typing import Any

import fakeredis
import pytest

from agentlink.broker import cancelled
from agentlink.broker.cancelled import CANCELLED_KEY, RUN_HEADER, end_cancelled


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The signals, each with its process."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(cancelled, "_signal", lambda pid, signum: sent.append((pid, signum)))
    return sent


@pytest.fixture
def client() -> fakeredis.FakeRedis:
    client = fakeredis.FakeRedis(server_type="valkey")
    client.zadd(CANCELLED_KEY, {"run": time.time()})
    return client


def _request(run_id: str, pid: int | None, ran_s: float) -> Any:
    began_at = None if pid is None else time.time() - ran_s
    return SimpleNamespace(
        id=f"step-{pid}", request_dict={RUN_HEADER: run_id}, worker_pid=pid, time_start=began_at, kill_at=None
    )


def test_steps_of_cancelled_runs_are_asked_then_killed(
    client: fakeredis.FakeRedis, sent: list[tuple[int, int]]
) -> None:
    requests = [_request("run", 7, 10), _request("other", 8, 10), _request("run", None, 0)]
    end_cancelled(client, requests, grace_s=0)
    assert sent == [(7, signal.SIGUSR1)]
    end_cancelled(client, requests, grace_s=0)
    assert sent[1:] == [(7, signal.SIGKILL)]


def test_one_that_has_just_begun_is_left_for_the_next_look(
    client: fakeredis.FakeRedis, sent: list[tuple[int, int]]
) -> None:
    """Most such are refused at once, and the signal would reach what their process does next: a step of another run."""
    refused = _request("run", 7, 0.05)
    end_cancelled(client, [refused], grace_s=5)
    assert sent == []
    refused.time_start -= 1
    end_cancelled(client, [refused], grace_s=5)
    assert sent == [(7, signal.SIGUSR1)]
