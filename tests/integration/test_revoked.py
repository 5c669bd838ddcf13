"""A revoked task never begins, whenever its message is taken and by whichever worker; its run is cancelled."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from celery import group
from celery.exceptions import TaskRevokedError

from agentlink.broker import revoked, server
from agentlink.broker.errors import BrokerUnavailable
from tasks import app
from tests.integration import sample, troubled
from tests.integration.system import System
from tests.waiting import wait_until
from workflows import RunState


@pytest.fixture
def ledger(system: System) -> Path:
    """Where tasks say that they have begun."""
    return system.folder / "ledger"


def _start(system: System, pool: str = "prefork") -> None:
    system.start_worker(concurrency=1, pool=pool, imports=troubled.IMPORTS)


def _is_revoked(result: Any) -> None:
    with pytest.raises(TaskRevokedError):
        result.get(timeout=20)
    assert result.status == "REVOKED"


def _all_is_done(system: System) -> bool:
    waiting = system.client.llen("cpu") + system.client.zcard("agentlink:delayed:cpu")
    return waiting + system.in_flight() == 0


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_one_in_the_queue_while_no_worker_was_up(system: System, ledger: Path, pool: str) -> None:
    result, other = troubled.begin.delay(str(ledger), "it"), troubled.begin.delay(str(ledger), "other")
    result.revoke()
    system.restart_broker()
    _start(system, pool)
    _is_revoked(result)
    other.get(timeout=20)
    assert "it" not in ledger.read_text().split()


def test_one_for_later_revoked_while_its_worker_is_down(system: System, ledger: Path) -> None:
    _start(system)
    result = troubled.begin.apply_async((str(ledger), "it"), countdown=2)
    system.workers[0].kill()
    result.revoke()
    _start(system)
    _is_revoked(result)
    assert not ledger.exists()


def test_one_for_later_revoked_before_its_worker_starts_again(system: System, ledger: Path) -> None:
    """Stock Celery's worker forgets it here."""
    _start(system)
    result = troubled.begin.apply_async((str(ledger), "it"), countdown=4)
    result.revoke()
    system.workers[0].wait_for_log("flagged as revoked")
    assert system.workers[0].stop() == 0
    _start(system)
    wait_until(lambda: _all_is_done(system), what="an empty broker")
    _is_revoked(result)
    assert not ledger.exists()


def test_a_run_whose_start_is_revoked_is_cancelled(system: System, ledger: Path) -> None:
    run = troubled.begins.delay(str(ledger), "it")
    app.control.revoke(run.id)
    _start(system)
    wait_until(lambda: run.progress.ended, what="the run's end", timeout_s=20)
    assert run.progress.state is RunState.CANCELLED
    assert not ledger.exists()


def test_a_run_whose_step_is_revoked_after_its_worker_died_is_cancelled(system: System) -> None:
    """The step's message comes again, to a worker that was not there when it was revoked."""
    system.start_worker(lease="1s")
    go, started = system.folder / "go", system.folder / "started"
    run = sample.waits.delay(str(go), str(started))
    wait_until(started.exists, what="the first step")
    system.workers[0].kill()
    started.unlink()
    app.control.revoke([step.id for step in run.steps()])
    system.start_worker(lease="1s")
    wait_until(lambda: run.progress.ended, what="the run's end", timeout_s=20)
    assert run.progress.state is RunState.CANCELLED
    assert not started.exists()


def test_a_run_is_cancelled_by_a_step_that_ignores_its_result_too(system: System) -> None:
    _start(system)
    go, started = system.folder / "go", system.folder / "started"
    run = troubled.waits_for_ignored.delay(str(go), str(started))
    wait_until(started.exists, what="the first step")
    app.control.revoke(run.steps()[1].id)
    go.touch()
    wait_until(lambda: run.progress.ended, what="the run's end", timeout_s=20)
    assert run.progress.state is RunState.CANCELLED


def test_all_of_a_group_at_once_also_those_a_worker_has_in_hand(system: System, ledger: Path) -> None:
    _start(system)
    go, started = system.folder / "go", system.folder / "started"
    blocker = sample.wait_for_file.delay(str(go), started=str(started))
    wait_until(started.exists, what="the task's start")
    results = group(troubled.begin.s(str(ledger), str(n)) for n in range(20)).apply_async()
    results.revoke()
    wait_until(lambda: system.client.zcard(revoked.REVOKED_KEY) == 20, what="the record")
    go.touch()
    blocker.get(timeout=20)
    for result in results:
        _is_revoked(result)
    assert not ledger.exists()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_hears_of_it_without_the_broadcast(system: System, ledger: Path, pool: str) -> None:
    """That can be lost with a connection."""
    _start(system, pool)
    result = troubled.begin.apply_async((str(ledger), "it"), countdown=3)
    for command in revoked.record_commands([result.id], 60):
        system.client.execute_command(*command)
    _is_revoked(result)
    assert not ledger.exists()


def test_a_worker_that_reconnects_knows_what_was_revoked_meanwhile(system: System, ledger: Path) -> None:
    _start(system)
    sample.add.delay(1, 2).get(timeout=20)
    os.kill(system.workers[0].pid, signal.SIGSTOP)
    system.restart_broker()
    result = troubled.begin.delay(str(ledger), "it")
    result.revoke()
    os.kill(system.workers[0].pid, signal.SIGCONT)
    _is_revoked(result)
    assert not ledger.exists()


def test_only_the_named_workers_are_told_and_nothing_is_recorded(system: System, ledger: Path) -> None:
    result = troubled.begin.delay(str(ledger), "it")
    app.control.revoke(result.id, destination=["nobody@nowhere"])
    assert not system.client.exists(revoked.REVOKED_KEY)
    _start(system)
    result.get(timeout=20)


def test_thousands_at_once_and_none(system: System) -> None:
    app.control.revoke([])
    assert not system.client.exists(revoked.REVOKED_KEY)
    app.control.revoke([f"{number}" for number in range(5_000)])
    assert system.client.zcard(revoked.REVOKED_KEY) == 5_000
    system.restart_broker()
    app.control.revoke("one more")
    assert system.client.zcard(revoked.REVOKED_KEY) == 5_001


def test_a_broker_that_hangs_refuses_within_the_publish_timeout(system: System) -> None:
    sample.add.delay(1, 1)
    with system.frozen_broker(), pytest.raises(BrokerUnavailable):
        app.control.revoke("it")
    wait_until(lambda: server.is_running(system.settings), what="the broker")
    assert not system.client.exists(revoked.REVOKED_KEY)
