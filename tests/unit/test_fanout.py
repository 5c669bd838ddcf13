"""What counts as a step, once each, and what is too many."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import fakeredis
import pytest

from agentlink.broker import fanout
from agentlink.broker.calls import Bundle, Outgoing
from agentlink.broker.fanout import DEPTH_HEADER, TALLY, FanOutExceeded, Tally, WaitsForSteps
from agentlink.settings import load
from tests.integration import sample
from workflows import StepState, store
from workflows.store import StepRecord

ROOT = "root"


@pytest.fixture
def client() -> fakeredis.FakeRedis:
    return fakeredis.FakeRedis(server_type="valkey", decode_responses=True)


def _request(task_id: str = "t", depth: int | None = None, **facts: Any) -> Any:
    headers = {} if depth is None else {DEPTH_HEADER: depth}
    return SimpleNamespace(id=task_id, task="tests.add", root_id=ROOT, **(headers | facts))


def _sent(request: Any, **options: Any) -> dict[str, Any]:
    fanout.count(request, options)
    return options


def _counts(client: fakeredis.FakeRedis) -> tuple[int, int]:
    counts: Any = client.hmget(fanout.tree_key(ROOT), "steps", "planned")
    return int(counts[0] or 0), int(counts[1] or 0) + int(client.scard(fanout.tree_key(ROOT) + ":live"))


def _plan(client: fakeredis.FakeRedis, run_id: str, count: int, within: str = "") -> None:
    last = StepRecord(id=run_id, name="tests.add", place="9", state=StepState.WAITING)
    steps = [
        StepRecord(id=f"{run_id}{within}{n}", name="tests.add", place=str(n), state=StepState.WAITING)
        for n in range(count - 1)
    ]
    created = store.creation_commands(run_id, "tests.sums", "", None, ROOT)
    store.record_plan(client, run_id, created, [*steps, last], root_id=ROOT, within=within)


def _end(client: fakeredis.FakeRedis, run_id: str, task_id: str, state: str, **facts: Any) -> None:
    request = SimpleNamespace(**({"task": "tests.add", "root_id": ROOT, "agentlink_run": run_id} | facts))
    for command in store.transition_commands(task_id, state, None, None, request):
        client.execute_command(*command)


class TestWhatIsSent:
    def test_what_a_body_sends_is_one_deeper_and_counts(self) -> None:
        request = _request()
        with fanout.body(request):
            options = _sent(request, headers={"mine": 1})
        assert options["headers"] == {"mine": 1, DEPTH_HEADER: 2}
        assert options[TALLY] == Tally(root_id=ROOT, task_id=options["task_id"], refusable=True)

    def test_what_replaces_a_task_is_no_deeper(self) -> None:
        request = _request(depth=5)
        with fanout.body(request), fanout.replacing(request):
            assert _sent(request)["headers"] == {DEPTH_HEADER: 5}

    def test_what_comes_next_in_an_accepted_canvas_counts_but_is_not_refused(self) -> None:
        options = _sent(_request(depth=99), task_id="next")
        assert options["headers"] == {DEPTH_HEADER: 99}
        assert options[TALLY] == Tally(root_id=ROOT, task_id="next", refusable=False)

    @pytest.mark.parametrize(
        ("depth", "options"),
        [
            pytest.param(2, {"headers": {DEPTH_HEADER: 2}}, id="planned"),
            pytest.param(None, {"retries": 1}, id="another attempt"),
            pytest.param(None, {}, id="next in a canvas called from outside"),
        ],
    )
    def test_what_is_counted_already_or_not_at_all_is_sent_as_it_is(
        self, depth: int | None, options: dict[str, Any]
    ) -> None:
        assert _sent(_request(depth=depth), **options) == options

    def test_too_deep_is_refused_where_the_call_is_made(self) -> None:
        request = _request(depth=load().max_depth)
        with fanout.body(request), pytest.raises(FanOutExceeded) as refused:
            _sent(request)
        assert (refused.value.cap, refused.value.wanted) == ("depth", load().max_depth + 1)
        assert not fanout.is_in_body(request)

    def test_a_group_is_sent_in_parts_but_asked_for_as_a_whole(self) -> None:
        published = []
        channel = SimpleNamespace(publish=lambda messages, also, wanted: published.append((len(messages), wanted)))
        bundle = Bundle(channel=channel)
        tally = Tally(root_id=ROOT, task_id="t", refusable=True)
        for _ in range(1200):
            bundle.add(Outgoing(key="cpu", message="", due_ms="", wake="", tally=tally))
        assert published == []
        bundle.send()
        assert published == [(500, 1200), (500, 0), (200, 0)]

    def test_no_more_is_gathered_than_could_be_accepted(self) -> None:
        bundle = Bundle()
        message = Outgoing(
            key="cpu", message="", due_ms="", wake="", tally=Tally(root_id=ROOT, task_id="t", refusable=True)
        )
        for _ in range(load().max_steps_live):
            bundle.add(message)
        with pytest.raises(FanOutExceeded):
            bundle.add(message)


class TestCounts:
    def test_a_canvas_counts_once_however_often_it_is_recorded(self, client: fakeredis.FakeRedis) -> None:
        for _ in range(2):
            _plan(client, ROOT, 5)
            assert _counts(client) == (5, 5)

    def test_a_canvas_in_place_of_the_runs_last_step_adds_the_others(self, client: fakeredis.FakeRedis) -> None:
        _plan(client, ROOT, 5)
        _plan(client, ROOT, 3, within="9")
        assert _counts(client) == (7, 7)

    def test_a_run_that_a_step_has_started_turns_into_its_last_step(self, client: fakeredis.FakeRedis) -> None:
        client.sadd(fanout.tree_key(ROOT) + ":live", "child")
        client.hincrby(fanout.tree_key(ROOT), "steps", 1)
        _plan(client, "child", 5)
        assert _counts(client) == (5, 5)

    def test_a_canvas_too_large_is_refused_and_nothing_of_it_recorded(
        self, client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limits = load().model_copy(update={"max_steps_live": 5, "max_steps": 7})
        monkeypatch.setattr(fanout, "load", lambda: limits)
        _plan(client, ROOT, 5)
        with pytest.raises(FanOutExceeded) as refused:
            _plan(client, "child", 1)
        assert (refused.value.run_id, refused.value.cap, refused.value.wanted) == (ROOT, "live", 6)
        with pytest.raises(FanOutExceeded) as refused:
            _plan(client, "child", 3)
        assert (refused.value.cap, refused.value.limit, refused.value.wanted) == ("steps", 7, 8)
        assert _counts(client) == (5, 5)
        assert store.read_steps(client, "child") == []

    def test_a_step_that_ends_twice_has_ended_once(self, client: fakeredis.FakeRedis) -> None:
        _plan(client, ROOT, 3)
        client.sadd(fanout.tree_key(ROOT) + ":live", "loose")
        for _ in range(2):
            _end(client, ROOT, "root0", "SUCCESS", agentlink_place="0", agentlink_depth=1)
            _end(client, ROOT, "loose", "SUCCESS", agentlink_depth=2)
        assert _counts(client) == (3, 2)

    def test_a_run_that_fails_leaves_nothing_live(self, client: fakeredis.FakeRedis) -> None:
        """Not even when a step that was running beside the one that failed ends later."""
        _plan(client, ROOT, 3)
        _plan(client, "child", 4)
        _end(client, "child", "child0", "FAILURE", agentlink_place="0", agentlink_depth=2)
        assert _counts(client) == (7, 3)
        _end(client, "child", "child1", "SUCCESS", agentlink_place="1", agentlink_depth=2)
        assert _counts(client) == (7, 3)

    def test_a_run_without_a_canvas_that_a_step_has_started_ends(self, client: fakeredis.FakeRedis) -> None:
        client.sadd(fanout.tree_key(ROOT) + ":live", "child")
        for command in store.creation_commands("child", "tests.sums", "", None, ROOT):
            client.execute_command(*command)
        _end(client, "child", "child", "SUCCESS", task=sample.sums.name, agentlink_depth=2)
        assert _counts(client) == (0, 0)

    def test_a_tree_that_is_forgotten_stays_so(self, client: fakeredis.FakeRedis) -> None:
        """No key without an end comes of a step that ends later."""
        _plan(client, ROOT, 3)
        client.delete(fanout.tree_key(ROOT))
        _end(client, ROOT, "root0", "SUCCESS", agentlink_place="0", agentlink_depth=1)
        assert not client.exists(fanout.tree_key(ROOT))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            FanOutExceeded("r", "live", 5, 6),
            ["run r", "6 steps that have not ended", "5 is", "AGENTLINK_MAX_STEPS_LIVE"],
        ),
        (FanOutExceeded("r", "steps", 5, 6), ["6 steps in all", "AGENTLINK_MAX_STEPS"]),
        (FanOutExceeded("r", "depth", 5, 6), ["6 deep", "self.replace(...)", "AGENTLINK_MAX_DEPTH"]),
        (WaitsForSteps("tests.parent", "c"), ["tests.parent", "result of c", "self.replace(", "chord"]),
    ],
)
def test_the_errors_say_what_to_do_and_survive_a_trip(error: Exception, words: list[str]) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == str(type(error)(*error.args))
    assert all(word in str(error) for word in words)
