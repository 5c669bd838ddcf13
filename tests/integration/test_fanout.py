"""One call can't lead to more than the machine can bear, and no parent keeps its children from running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import group
from celery.exceptions import TaskRevokedError

from agentlink.broker import fanout
from tests.integration import fanning, sample
from tests.integration.conftest import running_system
from tests.integration.system import System, Worker
from tests.waiting import wait_until
from workflows import FanOutExceeded, RunState, WaitsForSteps

#: More than one script call carries.
LIVE = 600
IN_ALL = 20


def _start_worker(system: System, **settings: int) -> Worker:
    caps = {name: str(value) for name, value in settings.items()}
    return system.start_worker(imports="tests.integration.sample,tests.integration.fanning", **caps)


def _system(tmp_path_factory: pytest.TempPathFactory, **settings: int) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("system")) as system:
        _start_worker(system, **settings)
        yield system


@pytest.fixture(scope="class")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A worker with two processes, for all tests of a class."""
    yield from _system(tmp_path_factory)


@pytest.fixture(scope="class")
def few_live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    yield from _system(tmp_path_factory, max_steps_live=LIVE, max_depth=3)


@pytest.fixture(scope="class")
def few_in_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    yield from _system(tmp_path_factory, max_steps=IN_ALL)


@pytest.fixture(scope="class")
def few_of_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    yield from _system(tmp_path_factory, max_agent_steps_live=IN_ALL)


def _counts(system: System, root_id: str) -> tuple[int, int]:
    """Steps there ever were, and those that have not ended."""
    counts: dict[str, Any] = system.client.hgetall(fanout.tree_key(root_id))  # type: ignore[assignment]
    live = system.client.scard(fanout.tree_key(root_id) + ":live")
    return int(counts.get("steps", 0)), int(counts.get("planned", 0)) + live


def _of_agent(system: System, agent: str) -> tuple[int, int]:
    """The same of all that an agent has called."""
    counts: dict[str, Any] = system.client.hgetall(fanout.agent_key(agent))  # type: ignore[assignment]
    return int(counts.get("steps", 0)), int(counts.get("live", 0))


def _wait_for_counts(system: System, root_id: str, steps: int) -> None:
    """Until so many have been counted, and all have ended."""
    wait_until(lambda: _counts(system, root_id) == (steps, 0), what=f"the end of {steps} steps")


def _wait_for_the_end(system: System) -> None:
    wait_until(lambda: not system.client.llen("cpu") and not system.in_flight(), what="the end of all")


class TestTooDeep:
    def test_a_task_that_starts_itself_for_ever_is_stopped(self, usual: System, tmp_path: Path) -> None:
        """The one that is too deep is never queued: its parent fails with the reason."""
        root = fanning.dig.delay(str(tmp_path))
        _wait_for_counts(usual, root.id, 15)
        assert {path.name for path in tmp_path.iterdir()} == {str(depth) for depth in range(1, 17)}
        assert sample.add.delay(1, 2).get(timeout=10) == 3

    def test_runs_in_runs_are_refused_where_they_are_too_deep(self, usual: System) -> None:
        """Sixteen deep they are a run like any other; of the seventeenth nothing is built."""
        assert fanning.nested.delay(16).get(timeout=30) == "up"
        run = fanning.nested.delay(17)
        with pytest.raises(FanOutExceeded) as refused:
            run.get(timeout=30)
        error = refused.value
        assert (error.run_id, error.cap, error.limit, error.wanted) == (run.id, "depth", 16, 17)
        assert run.progress.state is RunState.FAILED
        _wait_for_the_end(usual)
        assert _counts(usual, run.id)[1] == 0

    def test_tasks_that_replace_each_other_are_no_deeper(self, usual: System) -> None:
        """An agent's loop may go on for as long as its steps are not too many in all."""
        run = fanning.looping.delay(20)
        assert run.get(timeout=30) == 1
        _wait_for_counts(usual, run.id, 2 + 20 * 3)


class TestTooManyLive:
    def test_a_canvas_as_large_as_allowed_runs_and_one_larger_fails(self, few_live: System) -> None:
        """It fails as a canvas that can't be run does: at once, with the reason, nothing of it queued."""
        assert fanning.wide.delay(LIVE).get(timeout=30) == sum(range(LIVE - 1))
        run = fanning.wide.delay(LIVE + 1)
        with pytest.raises(FanOutExceeded) as refused:
            run.get(timeout=20)
        assert (refused.value.cap, refused.value.limit, refused.value.wanted) == ("live", LIVE, LIVE + 1)
        assert run.progress.state is RunState.FAILED
        assert run.steps() == []
        assert _counts(few_live, run.id) == (0, 0)

    def test_what_a_step_starts_counts_with_its_run(self, few_live: System) -> None:
        """All of a group is accepted or nothing; the step fails, and its run with it."""
        run = fanning.spreading.delay(LIVE - 1)
        assert run.get(timeout=20) == LIVE - 1
        _wait_for_counts(few_live, run.id, LIVE)
        refused = fanning.spreading.delay(LIVE)
        with pytest.raises(FanOutExceeded, match=f"{LIVE + 1} steps that have not ended"):
            refused.get(timeout=20)
        assert refused.progress.state is RunState.FAILED
        assert few_live.client.llen("cpu") == 0
        _wait_for_counts(few_live, refused.id, 1)

    def test_a_step_may_go_on_without_what_was_refused(self, few_live: System) -> None:
        assert fanning.spread_or_not.delay(LIVE + 1).get(timeout=20) == "AGENTLINK_MAX_STEPS_LIVE"
        assert few_live.client.llen("cpu") == 0

    def test_a_run_whose_step_starts_itself_for_ever_fails(self, few_live: System, tmp_path: Path) -> None:
        run = fanning.digging.delay(str(tmp_path), str(tmp_path / "go"))
        with pytest.raises(FanOutExceeded, match="AGENTLINK_MAX_DEPTH"):
            run.get(timeout=20)
        assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "3"}
        (tmp_path / "go").touch()
        _wait_for_the_end(few_live)


class TestTooManyInAll:
    def test_tasks_that_double_are_stopped(self, few_in_all: System, tmp_path: Path) -> None:
        """Outside any run the same holds for all that one call has led to."""
        root = fanning.breed.delay(str(tmp_path))
        _wait_for_counts(few_in_all, root.id, IN_ALL)
        assert len(list(tmp_path.iterdir())) == 1 + IN_ALL
        assert 0 < few_in_all.client.ttl(fanout.tree_key(root.id)) <= few_in_all.settings.hard_time_limit_s

    def test_what_has_ended_counts(self, few_in_all: System) -> None:
        run = fanning.looping.delay(20)
        with pytest.raises(FanOutExceeded) as refused:
            run.get(timeout=30)
        assert (refused.value.cap, refused.value.limit) == ("steps", IN_ALL)
        assert "AGENTLINK_MAX_STEPS," not in str(refused.value)
        assert str(refused.value).endswith("raise AGENTLINK_MAX_STEPS")


class TestCounts:
    @pytest.mark.parametrize(
        ("call", "steps"),
        [
            (("wide", 5), 5),
            (("nested", 3), 5),
            (("starting", "wide", 5), 1 + 5),
            (("starting", "no_canvas"), 1 + 1),
            (("starting", "failing_beside", 5), 1 + 6),
            (("starting", "failing_chord", 5), 1 + 7),
            (("sending", "chain"), 2 + 2),
            (("sending", "chord"), 2 + 3),
            (("sending", "chord in a chord"), 2 + 4),
            (("sending", "linked"), 2 + 2),
            (("sending", "failing"), 2 + 1),
            (("sending", "failing chain"), 2),
            (("sending", "retried"), 2),
            (("sending", "replaced"), 2 + 3),
            (("sending", "replaced by a group"), 2 + 3),
            (("sending", "ignored"), 2),
            (("sending", "later"), 2),
            (("sending", "run in a chain"), 2 + 3),
            (("sending", "run in a place"), 2 + 3),
        ],
        ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
    )
    def test_a_run_counts_its_steps_and_what_they_started(
        self, call: tuple[Any, ...], steps: int, usual: System
    ) -> None:
        """When all has ended nothing is live: of a run that has failed, not even the steps it never came to."""
        name, *args = call
        run = getattr(fanning, name).delay(*args)
        run.get(timeout=20, propagate=False)  # what its step sends may fail it
        _wait_for_counts(usual, run.id, steps)


class TestTooManyOfAnAgent:
    def test_runs_that_are_too_many_together_are_refused(self, few_of_agent: System, tmp_path: Path) -> None:
        """The one that is too large fails; another agent's run, and its own when the first has ended, do not."""
        go = tmp_path / "go"
        first = fanning.waiting_long.apply_async((IN_ALL - 5, str(go)), agent="anna")
        wait_until(lambda: _of_agent(few_of_agent, "anna")[1] == IN_ALL - 5, what="the first to be planned")
        second = fanning.wide.apply_async((6,), agent="anna")
        with pytest.raises(FanOutExceeded) as refused:
            second.get(timeout=20)
        error = refused.value
        assert (error.cap, error.agent, error.limit, error.wanted) == ("agent_live", "anna", IN_ALL, IN_ALL + 1)
        assert fanning.wide.apply_async((6,), agent="bert").get(timeout=20) == sum(range(5))
        go.touch()
        first.get(timeout=20)
        assert fanning.wide.apply_async((6,), agent="anna").get(timeout=20) == sum(range(5))


class TestAgents:
    """What an agent has called is counted together, whichever process it calls from."""

    @pytest.mark.parametrize(
        "shape",
        fanning.STEPS_CALLED,
    )
    def test_all_that_it_called_has_ended_when_it_has(self, shape: str, usual: System) -> None:
        agent = f"of {shape}"
        fanning.called(shape).apply_async(agent=agent)
        wait_until(lambda: _of_agent(usual, agent)[0] > 0, what="the call to be counted")
        wait_until(lambda: _of_agent(usual, agent)[1] == 0, what="all of it to end")
        _wait_for_the_end(usual)
        assert _of_agent(usual, agent) == (fanning.STEPS_CALLED[shape], 0)
        assert usual.client.scard(fanout.agent_key(agent) + ":trees") == 0

    def test_what_is_revoked_has_ended(self, usual: System) -> None:
        called = sample.add.apply_async((1, 1), agent="revoking", countdown=1)
        called.revoke()
        with pytest.raises(TaskRevokedError):
            called.get(timeout=20)
        wait_until(lambda: _of_agent(usual, "revoking") == (1, 0), what="its end to be counted")

    def test_a_call_too_many_is_refused_where_it_is_made(
        self, usual: System, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """All of a group or nothing; what has ended counts in the cap on all there ever were."""
        caps = usual.settings.model_copy(update={"max_agent_steps_live": 4, "max_agent_steps": 6})
        monkeypatch.setattr(fanout, "load", lambda: caps)
        go = tmp_path / "go"
        waiting = group(sample.wait_for_file.si(str(go)) for _ in range(3)).apply_async(agent="carl")
        with pytest.raises(FanOutExceeded, match="agent 'carl' would have 5 steps that have not ended"):
            group(sample.add.s(1, 1), sample.add.s(1, 1)).apply_async(agent="carl")
        go.touch()
        waiting.get(timeout=20)
        wait_until(lambda: _of_agent(usual, "carl") == (3, 0), what="the first to end")
        group(sample.add.s(1, 1) for _ in range(3)).apply_async(agent="carl").get(timeout=20)
        with pytest.raises(FanOutExceeded, match="agent 'carl' would have 7 steps in all, and 6 is the most"):
            sample.add.apply_async((1, 1), agent="carl")


class TestWaiting:
    @pytest.mark.parametrize("how", ["plain", "allowed", "not checked", "group"])
    def test_parents_that_wait_for_children_fail_at_once(self, how: str, usual: System, tmp_path: Path) -> None:
        """Stock Celery, once it is told to allow it, has both wait for children that find no process."""
        go = tmp_path / "go"
        # Called together: or the children of the first, which hold both processes, might be before the second.
        parents = group(fanning.wait_for_child.s(how, str(go)) for _ in range(2)).apply_async()
        for parent in parents.results:
            with pytest.raises(WaitsForSteps, match=r"wait_for_child can't wait .* self\.replace"):
                parent.get(timeout=10)
        go.touch()
        _wait_for_the_end(usual)

    @pytest.mark.usefixtures("usual")
    def test_a_result_that_is_there_can_be_had(self, tmp_path: Path) -> None:
        (tmp_path / "go").touch()
        assert fanning.wait_for_child.delay("when ready", str(tmp_path / "go")).get(timeout=10) == 0

    @pytest.mark.usefixtures("usual")
    def test_a_run_is_not_waited_for_either(self) -> None:
        with pytest.raises(WaitsForSteps):
            fanning.wait_for_run.delay().get(timeout=10)


def test_a_worker_killed_while_it_builds_counts_once(system: System, tmp_path: Path) -> None:
    """The canvas is taken up again by another worker; its steps are the same steps."""
    go, started = tmp_path / "go", tmp_path / "started"
    doomed = _start_worker(system, lease=1)
    run = fanning.slow_to_build.delay(IN_ALL, str(go), str(started))
    wait_until(started.exists, what="the canvas to be recorded")
    assert _counts(system, run.id) == (IN_ALL, IN_ALL)
    doomed.kill()
    go.touch()
    _start_worker(system, lease=1, max_steps=IN_ALL)
    assert run.get(timeout=20) == sum(range(IN_ALL - 1))
    _wait_for_counts(system, run.id, IN_ALL)
