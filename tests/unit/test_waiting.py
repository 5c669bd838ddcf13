"""What the scripts of waiting steps and of signals make of keys, without a worker."""

from __future__ import annotations

import json
import pickle
import time
from types import SimpleNamespace
from typing import Any

import fakeredis
import pytest
from celery import chain

from agentlink.broker import fanout
from agentlink.broker.errors import BrokerUnavailable
from agentlink.settings import load
from tasks import app
from tests.integration import sample
from tests.unit.recording import record
from workflows import (
    RunEnded,
    RunUnknown,
    SignalTimedOut,
    StepState,
    TooManySignals,
    recording,
    signals,
    sleep_for,
    store,
    wait_for,
    waiting,
)
from workflows.errors import CallRefused
from workflows.store import StepRecord

RUN = "run-1"
LIST = "cpu\x06\x1610"
DELAYED = "agentlink:delayed:cpu"
TWO_LIVES_S = int(2 * load().keep_results_s)


@pytest.fixture
def client() -> fakeredis.FakeRedis:
    client = fakeredis.FakeRedis(server_type="valkey", decode_responses=True)
    steps = [
        StepRecord(id=i, name="workflows.wait_for", place=str(n), state=StepState.WAITING) for n, i in enumerate("abc")
    ]
    recording.record_plan(client, RUN, recording.creation_commands(RUN, "tests.asks", "", None), steps)
    return client


def _message(step_id: str) -> str:
    return json.dumps({"headers": {"id": step_id}})


def _deliver(client: fakeredis.FakeRedis, step_id: str, number: int = 1, run_id: str = RUN, **facts: Any) -> Any:
    """A worker has taken the step's message and begun it."""
    client.hset("agentlink:inflight:w", str(number), f"{LIST}\0{_message(step_id)}")
    client.hset("agentlink:started:w", str(number), "1")
    empty = {"group": None, "chain": None, "chord": None, "callbacks": None, "retries": 0}
    request = SimpleNamespace(
        id=step_id, task="workflows.wait_for", root_id=run_id, agentlink_run=run_id, agentlink_place="0",
        hostname="w@h", properties={"delivery_tag": f"w/{number}"}, **(empty | facts),
    )  # fmt: skip
    _do(client, recording.transition_commands(step_id, "STARTED", None, None, request))
    return request


def _do(client: fakeredis.FakeRedis, commands: Any) -> None:
    record(client, commands)


def _ask(
    client: fakeredis.FakeRedis, request: Any, name: str | None = "go", timeout_s: float | None = None, **options: Any
) -> tuple[str, str]:
    backend = SimpleNamespace(
        client=client,
        patiently=lambda ask: ask(),
        get_key_for_task=app.backend.get_key_for_task,
        get_key_for_group=app.backend.get_key_for_group,
    )
    options = {"instead": False} | options
    return waiting.ask(SimpleNamespace(request=request, backend=backend), name, timeout_s, "Go on?", **options)


def _come_due(client: fakeredis.FakeRedis) -> None:
    """Move what is delayed as `exchange.lua` does."""
    for member in client.zrange(DELAYED, 0, -1):
        key, _, message = member.partition("\0")
        client.zrem(DELAYED, member)
        client.lpush(key, message)


def test_a_step_that_waits_is_in_flight_no_more_but_delayed(client: fakeredis.FakeRedis) -> None:
    assert _ask(client, _deliver(client, "a")) == ("parked", "")
    assert not client.exists("agentlink:inflight:w", "agentlink:started:w")
    [(member, due_ms)] = client.zrange(DELAYED, 0, -1, withscores=True)
    assert member == f"{LIST}\0{_message('a')}"
    assert abs(due_ms / 1000 - time.time() - load().keep_results_s / 4) < 60
    step = store.read_steps(client, RUN)[0]
    assert (step.state, step.waiting_for, step.worker, step.place) == (StepState.WAITING, "go", None, "0")
    [wait] = signals.waits_of(client, [RUN])
    assert (wait.step_id, wait.name, wait.prompt, wait.until) == ("a", "go", "Go on?", None)
    assert signals.all_waits(client) == [wait]


def test_its_message_is_due_when_its_time_is_over(client: fakeredis.FakeRedis) -> None:
    _ask(client, _deliver(client, "a"), timeout_s=60)
    [(_, due_ms)] = client.zrange(DELAYED, 0, -1, withscores=True)
    [wait] = signals.waits_of(client, [RUN])
    assert wait.until == due_ms / 1000
    assert abs(wait.until - wait.since - 60) < 0.01


def test_a_signal_calls_it_back_to_the_head_of_its_queue(client: fakeredis.FakeRedis) -> None:
    client.rpush(LIST, "another")
    _ask(client, _deliver(client, "a"))
    news = client.pubsub(ignore_subscribe_messages=True)
    news.subscribe("agentlink:wake:cpu")
    news.get_message()
    assert signals.send(client, RUN, "go", {"x": 1}) == 1
    assert client.rpop(LIST) == _message("a")
    assert not client.exists(DELAYED)
    message: Any = news.get_message()
    assert message["channel"] == "agentlink:wake:cpu"
    assert signals.waits_of(client, [RUN]) == []
    request = _deliver(client, "a", 2)
    for _ in range(2):  # however often it is run
        assert _ask(client, request) == ("signalled", '{"x": 1}')
    assert client.hget("agentlink:inflight:w", "2")


def test_a_signal_that_comes_first_is_kept_for_one_step(client: fakeredis.FakeRedis) -> None:
    for payload in (1, 2):
        assert signals.send(client, RUN, "go", payload) == 0
    assert signals.send(client, RUN, "gone", 3) == 0
    first, second, third = (_deliver(client, step, n) for n, step in enumerate("abc", start=1))
    assert _ask(client, first) == ("signalled", "1")
    assert _ask(client, second) == ("signalled", "2")
    assert _ask(client, first) == ("signalled", "1")
    assert _ask(client, third)[0] == "parked"


def test_the_one_that_has_waited_longest_gets_it(client: fakeredis.FakeRedis) -> None:
    for number, step in enumerate("cab", start=1):
        _ask(client, _deliver(client, step, number))
    for step in "cab":
        assert signals.waits_of(client, [RUN])[0].step_id == step
        assert signals.send(client, RUN, "go", step) == 1
        assert client.rpop(LIST) == _message(step)
        assert _ask(client, _deliver(client, step, 9)) == ("signalled", json.dumps(step))
    assert signals.send(client, RUN, "go") == 0


def test_a_signal_for_all_wakes_them_in_order(client: fakeredis.FakeRedis) -> None:
    for number, (step, name) in enumerate((("c", "go"), ("a", "go"), ("b", "goes")), start=1):
        _ask(client, _deliver(client, step, number), name)
    assert signals.send(client, RUN, "go", to_all=True) == 2
    assert [client.rpop(LIST) for _ in range(3)] == [_message("c"), _message("a"), None]


def test_one_that_is_on_its_way_to_a_worker_gets_it_there(client: fakeredis.FakeRedis) -> None:
    """Its message was due, to ask again or since its time is over."""
    _ask(client, _deliver(client, "a"), timeout_s=0.001)
    _come_due(client)
    assert signals.send(client, RUN, "go", "word") == 1
    assert client.lrange(LIST, 0, -1) == [_message("a")]
    assert _ask(client, _deliver(client, "a", 2), timeout_s=0.001) == ("signalled", '"word"')


def test_when_its_time_is_over_a_step_is_told_so(client: fakeredis.FakeRedis) -> None:
    request = _deliver(client, "a")
    assert _ask(client, request, timeout_s=0) == ("timed out", "")
    assert signals.send(client, RUN, "go", "late") == 0


def test_one_that_has_taken_its_other_branch_takes_no_signal_any_more(client: fakeredis.FakeRedis) -> None:
    request = _deliver(client, "a")
    assert _ask(client, request, timeout_s=0, instead=True)[0] == "timed out"
    assert signals.send(client, RUN, "go", "late") == 0
    assert _ask(client, request, timeout_s=0, instead=True)[0] == "timed out"
    assert signals.all_waits(client) == []


def test_a_step_that_asks_again_waits_no_longer_for_it(client: fakeredis.FakeRedis) -> None:
    _ask(client, _deliver(client, "a"), timeout_s=60)
    [before] = signals.waits_of(client, [RUN])
    _come_due(client)
    assert _ask(client, _deliver(client, "a", 2), timeout_s=60)[0] == "parked"
    assert signals.waits_of(client, [RUN]) == [before]


def test_a_message_that_came_twice_waits_once(client: fakeredis.FakeRedis) -> None:
    for number in (1, 2):
        _ask(client, _deliver(client, "a", number))
    assert client.zcard(DELAYED) == 1
    first, other = _deliver(client, "a", 3), f"{LIST}\0other"
    client.hset("agentlink:inflight:w", "3", other)
    _ask(client, first)
    assert client.zrange(DELAYED, 0, -1) == [other]


def test_a_worker_that_has_lost_the_message_parks_nothing(client: fakeredis.FakeRedis) -> None:
    signals.send(client, RUN, "go")
    request = _deliver(client, "a")
    client.delete("agentlink:inflight:w")
    assert _ask(client, request) == ("superseded", "")
    assert client.llen(signals.signals_key(RUN)) == 1
    assert not client.exists(DELAYED)


@pytest.mark.parametrize(("state", "told"), [("SUCCESS", True), ("FAILURE", False), ("REVOKED", False)])
def test_when_it_has_ended_nothing_is_left_of_it(client: fakeredis.FakeRedis, state: str, told: bool) -> None:
    request = _deliver(client, "a")
    _ask(client, request)
    if told:
        signals.send(client, RUN, "go")
    _do(client, waiting.ended_commands("a", state, None, None, request))
    keys = (signals.waits_key(RUN), signals.parked_key(RUN), signals.line_key(RUN), signals.INDEX_KEY)
    assert client.exists(*keys) == 0
    assert client.ttl(store.run_key(RUN)) <= TWO_LIVES_S


def test_one_that_failed_with_its_payload_gets_it_again(client: fakeredis.FakeRedis) -> None:
    signals.send(client, RUN, "go", "word")
    request = _deliver(client, "a")
    _ask(client, request)
    _do(client, waiting.ended_commands("a", "FAILURE", None, None, request))
    assert _ask(client, _deliver(client, "a", 2)) == ("signalled", '"word"')


def test_other_tasks_leave_nothing_to_forget(client: fakeredis.FakeRedis) -> None:
    request = _deliver(client, "a")
    assert list(waiting.ended_commands("a", "STARTED", None, None, request)) == []
    request.task = "tests.add"
    assert list(waiting.ended_commands("a", "SUCCESS", None, None, request)) == []


def test_what_a_run_will_need_is_kept_for_as_long_as_it_waits(client: fakeredis.FakeRedis) -> None:
    """The run, those it is a step of, their trees and agents, and what chords that come later have gathered."""
    _do(client, recording.creation_commands("inner", "tests.asks", "", RUN, RUN))
    tree, agent = fanout.tree_key(RUN), "agentlink:agent:anna"
    client.hset(tree, "agent", agent)
    client.hset(agent, "steps", 1)
    chords = [app.backend.get_key_for_group(group, part).decode() for group in "ghi" for part in (".j", ".s")]
    results = [app.backend.get_key_for_task(task_id).decode() for task_id in ("a", "inner")]
    for key in (agent, *chords, *results):
        client.set(key, 1, ex=10) if key != agent else client.expire(key, 10)
    client.expire(tree, 10)
    last = {"task": "t", "options": {"group_id": "h", "chord": {"task": "b", "options": {"group_id": "i"}}}}
    request = _deliver(client, "a", run_id="inner", group="g", chain=[{"task": "t", "options": {}}, last])
    request.root_id = RUN
    _ask(client, request)
    needed = [store.run_key("inner"), store.run_key(RUN), store.steps_key(RUN), tree, agent, *chords, *results]
    needed += [of("inner") for of in (signals.waits_key, signals.parked_key, signals.line_key)]
    assert {key: client.ttl(key) > 3600 * 86400 for key in needed} == dict.fromkeys(needed, True)
    permanent = {key for key in client.scan_iter() if client.ttl(key) == -1}
    assert permanent == {store.INDEX_KEY, f"{store.INDEX_KEY}:QUEUED", DELAYED}


def test_with_a_time_it_is_kept_no_longer_than_that(client: fakeredis.FakeRedis) -> None:
    _ask(client, _deliver(client, "a"), timeout_s=1000)
    for key in (store.run_key(RUN), store.steps_key(RUN), signals.waits_key(RUN)):
        assert 0 <= TWO_LIVES_S + 1000 - client.ttl(key) < 60


def test_a_run_that_has_ended_is_sent_nothing_and_kept_no_longer(client: fakeredis.FakeRedis) -> None:
    _ask(client, _deliver(client, "a"))
    client.hset(store.run_key(RUN), "state", "FAILED")
    client.expire(store.run_key(RUN), 100)
    with pytest.raises(RunEnded, match=r"run run-1 has ended \(FAILED\)"):
        signals.send(client, RUN, "go")
    assert signals.all_waits(client) == []
    assert _ask(client, _deliver(client, "a", 2))[0] == "ended"
    assert client.ttl(store.run_key(RUN)) <= 100


def test_a_run_that_is_forgotten_is_forgotten_wholly(client: fakeredis.FakeRedis) -> None:
    signals.send(client, RUN, "other")
    _ask(client, _deliver(client, "a"))
    client.delete(store.run_key(RUN))
    assert signals.all_waits(client) == []
    assert _ask(client, _deliver(client, "a", 2)) == ("forgotten", "")
    assert not client.exists(signals.INDEX_KEY, *client.keys(f"{store.run_key(RUN)}:[wpl]*"), signals.signals_key(RUN))
    with pytest.raises(RunUnknown):
        signals.send(client, RUN, "go")
    assert _ask(client, _deliver(client, "x", 3, run_id="never")) == ("unknown", "")


def test_so_many_signals_are_kept_and_no_more(client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "KEEP_SIGNALS", 2)
    _ask(client, _deliver(client, "a"), "awaited")
    for _ in range(2):
        signals.send(client, RUN, "go")
    with pytest.raises(TooManySignals, match="2 signals"):
        signals.send(client, RUN, "go")
    assert signals.send(client, RUN, "awaited") == 1
    assert (
        0 <= TWO_LIVES_S - client.ttl(signals.signals_key(RUN)) < 60
        or client.ttl(signals.signals_key(RUN)) > TWO_LIVES_S
    )


def test_a_call_that_is_repeated_is_one_signal(client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer had been lost."""
    monkeypatch.setattr(signals, "uuid", lambda: "the same")
    for _ in range(2):
        assert signals.send(client, RUN, "go") == 0
    assert client.llen(signals.signals_key(RUN)) == 1


@pytest.mark.parametrize(
    ("name", "payload", "says"),
    [
        (None, 1, "want a signal's name"),
        ("", 1, "want a name of 1 to 100"),
        ("a\0b", 1, "want a name of 1 to 100"),
        ("go", object(), "want a payload that JSON can tell"),
        ("go", "x" * 1_000_001, "want a payload of 1 MB at most"),
    ],
)
def test_what_is_no_signal_is_refused(client: fakeredis.FakeRedis, name: Any, payload: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        signals.send(client, RUN, name, payload)
    assert not client.exists(signals.signals_key(RUN))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"name": ""},
        {"name": "go", "timeout": "soon"},
        {"name": "go", "on_timeout": sample.add.s(1, 1)},
        {"timeout": -1},
    ],
)
def test_what_can_not_be_waited_for_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="want a "):
        wait_for(**options)


def test_what_it_waits_for_travels_in_the_signature() -> None:
    step = wait_for("go", timeout="2d", on_timeout=sample.add.s(1, 2), prompt="Go on?")
    assert step.immutable
    assert json.loads(json.dumps(step))["kwargs"]["on_timeout"]["args"] == [1, 2]
    assert (step.args, step.kwargs["timeout_s"], step.kwargs["prompt"]) == (("go",), 172800, "Go on?")
    assert (sleep_for("2h").args, sleep_for("2h").kwargs["timeout_s"]) == ((None,), 7200)


def test_only_a_step_of_a_run_can_wait() -> None:
    with pytest.raises(CallRefused, match="only a step of a run can wait"):
        chain(sample.add.s(1, 1), wait_for("go")).apply().get(disable_sync_subtasks=False)


@pytest.mark.parametrize("error", [SignalTimedOut("go", 60.0), RunEnded("r", "FAILED"), TooManySignals("r", 1)])
def test_errors_are_the_same_when_read_again(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))


def test_a_broker_that_comes_to_it_too_late_does_nothing(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "_ACCEPT_FRACTION", -1.0)
    hurried = load().model_copy(update={"publish_timeout_s": 0.2})
    monkeypatch.setattr(signals, "load", lambda: hurried)
    with pytest.raises(BrokerUnavailable, match="too late"):
        signals.send(client, RUN, "go")
    assert not client.exists(signals.signals_key(RUN))
