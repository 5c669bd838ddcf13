"""How a result leaves a pool process with Celery's answer."""

from __future__ import annotations

import os
import pickle
import time

import pytest

from agentlink.broker import along
from agentlink.broker.along import Stored
from resource_guard import caps
from resource_guard.followers import BEGIN_BY_HEADER, NotBegun
from resource_guard.gate import MEASURE_HEADER

SMALL = Stored(b"key", b'{"status": "SUCCESS"}', 60)


def _ran(monkeypatch: pytest.MonkeyPatch, stored: Stored, request: dict[str, object] | None = None) -> object:
    def trace(task: str, task_id: str, request: dict[str, object]) -> tuple[int, str, float]:
        assert along.leave(stored) is (len(stored.value) < 10_000)
        return 0, "'it'", 0.5

    monkeypatch.setattr(along, "fast_trace_task", trace)
    return pickle.loads(pickle.dumps(along.traced("a.task", "the-id", request or {})))


def test_it_is_collected_once_where_the_answer_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _ran(monkeypatch, SMALL) == (0, "'it'", 0.5)
    assert along.collect_result("the-id") == SMALL
    assert along.collect_result("the-id") is None


def test_a_large_one_is_left_to_whoever_stores_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _ran(monkeypatch, Stored(b"key", b"x" * 10_000, 60)) == (0, "'it'", 0.5)
    assert along.collect_result("the-id") is None


def test_what_comes_too_late_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    failed, answer, runtime = _ran(monkeypatch, SMALL, {BEGIN_BY_HEADER: time.monotonic() - 0.001})  # type: ignore[misc]
    assert (failed, runtime) == (False, 0.0)
    assert isinstance(answer, NotBegun)
    assert along.collect_result("the-id") is None
    assert _ran(monkeypatch, SMALL, {BEGIN_BY_HEADER: time.monotonic() + 60}) == (0, "'it'", 0.5)
    assert along.collect_result("the-id") == SMALL


def test_outside_a_task_in_a_pool_process_nothing_can_be_left() -> None:
    assert not along.leave(SMALL)


def test_what_a_measured_task_took_is_collected_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _ran(monkeypatch, SMALL, {MEASURE_HEADER: True}) == (0, "'it'", 0.5)
    used = along.collect_used("the-id")
    assert used is not None
    assert used.peak_bytes < 50_000_000
    assert along.collect_used("the-id") is None
    assert along.collect_result("the-id") == SMALL


def test_what_a_process_holds_without_a_task_is_told_when_it_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(along._Outgoing, "told_bytes", 0)
    for held_mb, told_mb in ((20, 20), (22, 20), (60, 60)):
        monkeypatch.setattr(caps, "give_back", lambda held_mb=held_mb: held_mb * 1_000_000)
        _ran(monkeypatch, Stored(b"key", b"x" * 10_000, 60))
        assert caps.told_bytes[os.getpid()] == told_mb * 1_000_000
