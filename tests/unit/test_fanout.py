"""What counts as a step, once each, and what is too many."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import fakeredis
import pytest

from agentlink.broker import fanout
from agentlink.broker.calls import Bundle, Outgoing
from agentlink.broker.fanout import DEPTH_HEADER, TALLY, FanOutExceeded, Tally, WaitsForSteps
from agentlink.settings import load
from tests.integration import sample
from tests.unit.recording import record
from workflows import StepState, recording, store
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


def _plan(client: fakeredis.FakeRedis, run_id: str, count: int, within: str = "", root: str = ROOT) -> None:
    last = StepRecord(id=run_id, name="tests.add", place="9", state=StepState.WAITING)
    steps = [
        StepRecord(id=f"{run_id}{within}{n}", name="tests.add", place=str(n), state=StepState.WAITING)
        for n in range(count - 1)
    ]
    created = recording.creation_commands(run_id, "tests.sums", "", None, root)
    recording.record_plan(client, run_id, created, [*steps, last], root_id=root, within=within)


def _do(client: fakeredis.FakeRedis, commands: Iterable[Any]) -> None:
    record(client, commands)


def _end(client: fakeredis.FakeRedis, run_id: str, task_id: str, state: str, **facts: Any) -> None:
    request = SimpleNamespace(**({"task": "tests.add", "root_id": ROOT, "agentlink_run": run_id} | facts))
    _do(client, recording.transition_commands(task_id, state, None, None, request))


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
        for command in recording.creation_commands("child", "tests.sums", "", None, ROOT):
            client.execute_command(*command)
        _end(client, "child", "child", "SUCCESS", task=sample.sums.name, agentlink_depth=2)
        assert _counts(client) == (0, 0)

    def test_a_tree_that_is_forgotten_stays_so(self, client: fakeredis.FakeRedis) -> None:
        """No key without an end comes of a step that ends later."""
        _plan(client, ROOT, 3)
        client.delete(fanout.tree_key(ROOT))
        _end(client, ROOT, "root0", "SUCCESS", agentlink_place="0", agentlink_depth=1)
        assert not client.exists(fanout.tree_key(ROOT))


class TestAgents:
    """All that an agent has called is counted together too."""

    def _call(self, client: fakeredis.FakeRedis, *task_ids: str, agent: str | None = "anna", **caps: int) -> Any:
        """What the counting script says to calls from outside: nothing when they are accepted."""
        tallies = [Tally(root_id=id_, task_id=id_, refusable=True, agent=agent) for id_ in task_ids]
        counting = json.loads(fanout.counting_arguments(task_ids[0], len(task_ids), tallies)) | caps
        script = "local counting = cjson.decode(ARGV[1]) local refused = refusal(counting)"
        script += " if refused then return refused end count_sent(counting) return false"
        return client.eval(fanout.COUNTING + script, 0, json.dumps(counting))

    def _of_agent(self, client: fakeredis.FakeRedis, agent: str = "anna") -> tuple[int, int]:
        counts: Any = client.hmget(fanout.agent_key(agent), "steps", "live")
        return int(counts[0] or 0), int(counts[1] or 0)

    def _end_run(self, client: fakeredis.FakeRedis, run_id: str, state: str, task: str = sample.sums.name) -> None:
        request = SimpleNamespace(task=task, root_id=run_id, agentlink_run=run_id, agentlink_depth=1)
        _do(client, recording.transition_commands(run_id, state, None, None, request))

    def test_what_an_agent_calls_is_a_tree_that_counts(self) -> None:
        options = {"agent": "anna", "headers": {"mine": 1}, "task_id": "t"}
        fanout.count_call(options)
        tally = Tally(root_id="t", task_id="t", refusable=True, agent="anna")
        assert options == {"headers": {"mine": 1, DEPTH_HEADER: 1}, "task_id": "t", TALLY: tally}

    def test_the_settings_may_name_the_agent_and_a_call_another(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fanout, "load", lambda: load().model_copy(update={"agent": "anna"}))
        for named, expected in (({}, "anna"), ({"agent": "bert"}, "bert")):
            options: dict[str, Any] = dict(named)
            fanout.count_call(options)
            assert options[TALLY].agent == expected

    def test_without_an_agent_nothing_is_counted(self) -> None:
        options: dict[str, Any] = {}
        fanout.count_call(options)
        assert options == {}

    @pytest.mark.parametrize("name", ["", " ", " anna", "a\nb", "a" * 101, 7])
    def test_a_name_that_is_none_is_refused(self, name: Any) -> None:
        with pytest.raises(ValueError, match="want a name of 1 to 100 printable characters"):
            fanout.count_call({"agent": name})

    def test_in_a_task_its_own_tree_says_whose_it_is(self) -> None:
        request = _request()
        with fanout.body(request):
            assert _sent(request, agent="bert")[TALLY].agent is None

    def test_runs_of_an_agent_are_counted_together(self, client: fakeredis.FakeRedis) -> None:
        for run_id in ("one", "two"):
            assert self._call(client, run_id) is None
            _plan(client, run_id, 4, root=run_id)
        assert self._of_agent(client) == (8, 8)
        self._end_run(client, "one", "FAILURE")
        assert self._of_agent(client) == (8, 4)
        assert client.smembers(fanout.agent_key("anna") + ":trees") == {fanout.tree_key("two")}
        self._end_run(client, "two", "SUCCESS")
        assert self._of_agent(client) == (8, 0)
        assert 0 < client.ttl(fanout.agent_key("anna")) <= 2 * load().keep_results_s

    def test_a_run_without_a_canvas_and_a_task_outside_any_run_end(self, client: fakeredis.FakeRedis) -> None:
        self._call(client, "run")
        for command in recording.creation_commands("run", "tests.sums", "", None):
            client.execute_command(*command)
        self._call(client, "task")
        assert self._of_agent(client) == (2, 2)
        self._end_run(client, "run", "SUCCESS")
        self._end_run(client, "task", "SUCCESS", task="tests.add")
        assert self._of_agent(client) == (2, 0)

    def test_what_is_too_much_is_refused_and_another_agent_is_not_touched(self, client: fakeredis.FakeRedis) -> None:
        caps = {"max_agent_live": 3, "max_agent_steps": 5}
        assert self._call(client, "a", "b", "c", **caps) is None
        assert self._call(client, "d", **caps) == ["agent_live", 4, "agentlink:agent:anna"]
        assert self._call(client, "e", agent="bert", **caps) is None
        assert self._call(client, "f", agent=None, **caps) is None
        for task_id in ("a", "b", "c"):
            self._end_run(client, task_id, "SUCCESS", task="tests.add")
        assert self._call(client, "g", "h", **caps) is None
        assert self._call(client, "i", **caps) == ["agent_steps", 6, "agentlink:agent:anna"]
        assert self._of_agent(client) == (5, 2)

    def test_steps_of_a_run_are_refused_by_the_cap_of_its_agent(
        self, client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limits = load().model_copy(update={"max_agent_steps_live": 5})
        monkeypatch.setattr(fanout, "load", lambda: limits)
        self._call(client, ROOT)
        _plan(client, ROOT, 4)
        with pytest.raises(FanOutExceeded) as refused:
            _plan(client, "child", 2)
        error = refused.value
        assert (error.run_id, error.cap, error.limit, error.wanted, error.agent) == (ROOT, "agent_live", 5, 6, "anna")
        assert self._of_agent(client) == (4, 4)

    def test_what_was_forgotten_before_it_ended_does_not_count_for_ever(self, client: fakeredis.FakeRedis) -> None:
        assert self._call(client, "a", "b", max_agent_live=3) is None
        client.delete(fanout.tree_key("a"), fanout.tree_key("a") + ":live")
        assert self._of_agent(client) == (2, 2)
        assert self._call(client, "c", "d", max_agent_live=3) is None
        assert self._of_agent(client) == (4, 3)

    def test_a_group_is_gathered_up_to_the_cap_of_its_agent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fanout, "load", lambda: load().model_copy(update={"max_agent_steps_live": 2}))
        bundle = Bundle()
        tally = Tally(root_id="t", task_id="t", refusable=True, agent="anna")
        message = Outgoing(key="cpu", message="", due_ms="", wake="", tally=tally)
        bundle.add(message)
        bundle.add(message)
        with pytest.raises(FanOutExceeded, match="agent 'anna' would have 3 steps that have not ended, and 2 is"):
            bundle.add(message)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            FanOutExceeded("r", "live", 5, 6),
            ["run r", "6 steps that have not ended", "5 is", "AGENTLINK_MAX_STEPS_LIVE"],
        ),
        (FanOutExceeded("r", "steps", 5, 6), ["6 steps in all", "AGENTLINK_MAX_STEPS"]),
        (
            FanOutExceeded("r", "agent_live", 5, 6, "anna"),
            ["agent 'anna'", "6 steps that have not ended", "wait until", "AGENTLINK_MAX_AGENT_STEPS_LIVE"],
        ),
        (FanOutExceeded("r", "agent_steps", 5, 6, "anna"), ["6 steps in all", "AGENTLINK_MAX_AGENT_STEPS"]),
        (FanOutExceeded("r", "depth", 5, 6), ["6 deep", "self.replace(...)", "AGENTLINK_MAX_DEPTH"]),
        (WaitsForSteps("tests.parent", "c"), ["tests.parent", "result of c", "self.replace(", "chord"]),
    ],
)
def test_the_errors_say_what_to_do_and_survive_a_trip(error: Exception, words: list[str]) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == str(type(error)(*error.args))
    assert all(word in str(error) for word in words)
