"""What a caller sees when the broker is dead, frozen or full: one error, soon, and nothing of the call runs later."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
import redis

from agentlink.broker import server
from agentlink.broker.errors import BrokerUnavailable
from tests.integration import sample
from tests.integration.system import System
from tests.waiting import wait_until
from workflows import RunState
from workflows.states import StepState

PROMISED_S = 5.0


def _call(ledger: object, text: str = "ghost") -> float:
    """Call a task that must be refused; return how long that took, in seconds."""
    begun = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        sample.append_line.delay(str(ledger), text)
    return time.monotonic() - begun


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid), what="the broker's end")


def test_a_dead_broker_refuses_a_call_within_five_seconds(system: System) -> None:
    sample.add.delay(1, 1)  # this process has known the broker alive: it will not start another
    _kill(system.broker_pid())
    assert _call(system.folder / "ledger") < PROMISED_S


def test_a_broker_that_comes_back_in_time_takes_the_call_and_records_the_run(system: System) -> None:
    sample.add.delay(1, 1)
    _kill(system.broker_pid())
    restart = threading.Timer(0.5, server.ensure_running, [system.settings])
    restart.start()
    run = sample.sums.delay(2)
    restart.join()
    assert system.client.llen("cpu") == 2
    assert run.progress.state is RunState.QUEUED


def test_a_call_whose_answer_is_lost_is_accepted_once(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker is killed between doing it and saying so: the caller asks again."""
    answers = iter([redis.ConnectionError("Connection closed by server."), redis.ConnectionError("and again"), None])
    stock = redis.Redis.evalsha

    def evalsha(client: redis.Redis, *args: object) -> object:
        answer = stock(client, *args)
        if error := next(answers, None):
            raise error
        return answer

    sample.add.delay(1, 1)
    monkeypatch.setattr(redis.Redis, "evalsha", evalsha)
    sample.sums.delay(2)
    monkeypatch.undo()
    assert system.client.llen("cpu") == 2
    assert system.client.zcard("agentlink:runs") == 1


@contextlib.contextmanager
def _memory(system: System, limit_bytes: int) -> Iterator[None]:
    system.client.config_set("maxmemory", limit_bytes)
    try:
        yield
    finally:
        system.client.config_set("maxmemory", system.settings.broker_memory_bytes)


def test_a_full_broker_loses_nothing_of_what_runs(system: System) -> None:
    """Results and next steps wait until there is room again; only new calls are refused."""
    worker = system.start_worker()
    go, started = system.folder / "go", system.folder / "started"
    run = sample.waits.delay(str(go), str(started))
    wait_until(started.exists, what="the step's start")
    with _memory(system, 1):
        go.touch()
        worker.wait_for_log("used memory > 'maxmemory'.); what comes next waits for some")
    assert run.get(timeout=20) == 2


def test_what_a_task_calls_waits_for_a_frozen_broker(system: System) -> None:
    """For longer than a call from outside, which is refused within seconds: the task can do nothing better."""
    worker = system.start_worker()
    go, started = system.folder / "go", system.folder / "started"
    result = sample.pass_on.delay(str(go), str(started))
    wait_until(started.exists, what="the task's start")
    broker = psutil.Process(system.broker_pid())
    broker.suspend()
    try:
        go.touch()
        worker.wait_for_log("the broker is not reached", times=2)
    finally:
        broker.resume()
    assert sample.add.AsyncResult(result.get(timeout=20)).get(timeout=20) == 2


def test_a_broker_nearly_full_refuses_calls_before_it_is(system: System) -> None:
    sample.add.delay(1, 1)
    used: int = system.client.info("memory")["used_memory"]
    with _memory(system, int(used / 0.97)):
        wait_until(lambda: _refusal() is not None, what="a refusal")
        assert "it is full" in str(_refusal())
    wait_until(lambda: _refusal() is None, what="a call that is taken")


def _refusal() -> BrokerUnavailable | None:
    try:
        sample.add.delay(1, 1)
    except BrokerUnavailable as error:
        return error
    return None


def test_a_frozen_broker_refuses_a_call_and_runs_nothing_of_it_later(system: System) -> None:
    """What lies in its socket when it is continued has outlived its deadline."""
    ledger = system.folder / "ledger"
    sample.add.delay(1, 1)
    with system.frozen_broker():
        assert _call(ledger) < PROMISED_S
        assert _call(ledger) < PROMISED_S
    sample.append_line.delay(str(ledger), "real")
    system.start_worker()
    wait_until(lambda: system.client.llen("cpu") == 0 and ledger.exists(), what="the real call's line")
    system.workers[0].stop()
    assert ledger.read_text() == "real\n"


FIRST_CALL = """
import time
from agentlink.broker.errors import BrokerUnavailable
from tests.integration import sample
begun = time.monotonic()
try:
    sample.add.delay(1, 1)
except BrokerUnavailable as error:
    print(time.monotonic() - begun)
"""


def test_a_frozen_broker_refuses_the_first_call_of_a_process_as_soon(system: System) -> None:
    with system.frozen_broker():
        assert float(system.python(FIRST_CALL).stdout) < PROMISED_S
    assert system.client.llen("cpu") == 0


def test_a_broker_of_ones_own_that_is_dead_refuses_a_call_as_soon(system: System) -> None:
    refused = system.python(FIRST_CALL, broker_url=f"redis+socket://{system.folder}/none?virtual_host=0")
    assert float(refused.stdout) < PROMISED_S


def test_a_frozen_broker_refuses_a_workflow_whole(system: System) -> None:
    sample.add.delay(1, 1)
    with system.frozen_broker(), pytest.raises(BrokerUnavailable):
        sample.sums.delay(3)
    wait_until(lambda: server.is_running(system.settings), what="the broker")
    assert not system.client.exists("agentlink:runs")


def test_a_full_broker_refuses_a_call_and_keeps_what_it_has(system: System) -> None:
    first = sample.sums.delay(1)
    with _memory(system, 1):
        begun = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="it is full"):
            sample.sums.delay(2)
        assert time.monotonic() - begun < PROMISED_S
        assert system.client.llen("cpu") == 1
    assert system.client.zrange("agentlink:runs", 0, -1) == [first.id]


def test_everything_accepted_survives_a_killed_broker(system: System) -> None:
    run = sample.sums.delay(4)
    system.restart_broker()
    system.start_worker()
    assert run.get(timeout=20) == 1010


def test_a_worker_survives_a_killed_broker_while_it_runs_a_task_and_waits_for_more(system: System) -> None:
    """One slot is busy, the other waits for a message: kombu's own channel ends the worker here."""
    worker = system.start_worker()
    go, started = system.folder / "go", system.folder / "started"
    waiting = sample.wait_for_file.delay(str(go), started=str(started))
    wait_until(started.exists, what="the task's start")
    system.restart_broker()
    assert sample.add.delay(1, 2).get(timeout=20) == 3
    go.touch()
    assert waiting.get(timeout=20) == 0
    assert worker.process.poll() is None


def test_everything_accepted_survives_a_stop(system: System) -> None:
    run = sample.sums.delay(4)
    assert server.stop(system.settings)
    assert not server.stop(system.settings)
    assert server.ensure_running(system.settings)
    system.start_worker()
    assert run.get(timeout=20) == 1010


def test_a_caller_that_fires_a_thousand_calls_and_exits_says_nothing(system: System) -> None:
    script = "from tests.integration import sample\nfor i in range(1000): sample.immediate.delay(i)"
    done = system.python(script, timeout_s=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert system.client.llen("cpu") == 1000


@pytest.mark.parametrize("phase", ["while it builds its canvas", "while a chord counts its members"])
def test_a_run_waits_for_a_broker_that_is_away(system: System, phase: str) -> None:
    """What it has to tell the broker by itself is no reason to fail it."""
    worker = system.start_worker()
    path = system.folder / "built"
    run = sample.built_when_there.delay(str(path))
    wait_until(path.with_name("built-started").exists, what="the run's start")
    member = path.with_name("built-0")
    if phase == "while a chord counts its members":
        path.touch()
        wait_until(
            lambda: sum(step.state is StepState.RUNNING for step in run.steps()) == 2, what="the chord's members"
        )
    _kill(system.broker_pid())
    path.touch()
    member.touch()
    worker.wait_for_log("the broker can't be told yet")
    server.ensure_running(system.settings)
    path.with_name("built-1").touch()
    assert run.get(timeout=30) == 0
    assert run.progress.state is RunState.SUCCEEDED
