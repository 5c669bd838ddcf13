"""What a graph's scripts queue as its steps end, whichever way, and as its run is opened or built again."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import fakeredis
import pytest
from celery import chain

from agentlink.broker.cancelled import RUN_HEADER
from tasks.app import app
from tests.integration import sample
from workflows import graph
from workflows.errors import CanvasUnusable
from workflows.graph import GRAPH_HEADER, Graph
from workflows.plan import plan
from workflows.store import TOLERATED_HEADER, run_key

KEY, RUN = "agentlink:graph:run:", "run"
#: 1 and 2 come first, 3 needs 1, 4 needs 1 and 2, 5 needs 4; 6 is the last.
AFTER = [[3, 4, 6], [4, 6], [6], [5, 6], [6], []]


class World:
    """A graph in a broker."""

    def __init__(self) -> None:
        self.client = fakeredis.FakeRedis(server_type="valkey", decode_responses=True)
        shape = [{"id": f"s{number}", "after": after} for number, after in enumerate(AFTER, start=1)]
        self.client.hset(KEY, mapping={"steps": json.dumps(shape), "last": 6})
        for number in range(1, 7):
            self.client.hset(KEY, f"message:{number}", f"queue\0wake\0message {number}")
        self.run_is("RUNNING")

    def run_is(self, state: str) -> None:
        self.client.hset(run_key(RUN), "state", state)

    def begin(self) -> set[int]:
        self.client.eval(graph._BEGIN, 3, KEY, f"{KEY}:ready", run_key(RUN), "result-")
        return self.queued()

    def end(self, number: int, state: str = "SUCCESS", tolerated: bool = False) -> set[int]:
        """The end of a step, and what is queued for it."""
        self.client.set(f"result-s{number}", json.dumps({"status": state, "result": None}))
        facts = {GRAPH_HEADER: [KEY, number], RUN_HEADER: RUN, TOLERATED_HEADER: tolerated or None}
        for command in graph.ended_commands(f"s{number}", state, None, None, SimpleNamespace(**facts)):
            self.client.execute_command(*[str(part).replace("celery-task-meta-", "result-") for part in command])
        return self.queued()

    def may_begin(self, number: int) -> bool:
        return bool(self.client.eval(graph._TURN, 3, KEY, f"{KEY}:ready", run_key(RUN), number, 100))

    def queued(self) -> set[int]:
        """What has been queued since this was asked last."""
        messages: Any = self.client.lrange("queue", 0, -1)
        self.client.delete("queue")
        assert len(messages) == len(set(messages))
        return {int(message.removeprefix("message ")) for message in messages}


@pytest.fixture
def world() -> World:
    return World()


def test_each_step_is_queued_when_the_last_that_it_needs_has_succeeded(world: World) -> None:
    assert world.begin() == {1, 2}
    assert world.end(1) == {3}
    assert world.end(2) == {4}
    assert world.end(4) == {5}
    assert world.end(5) == set()
    assert world.end(3) == {6}
    assert world.end(6) == set()
    assert world.client.keys("agentlink:graph:*") == []


def test_what_is_told_twice_counts_once(world: World) -> None:
    assert (world.begin(), world.begin()) == ({1, 2}, set())
    assert (world.end(1), world.end(1)) == ({3}, set())
    assert (world.end(2), world.end(2)) == ({4}, set())


def test_after_a_failure_that_ends_the_run_nothing_is_queued(world: World) -> None:
    world.begin()
    world.run_is("FAILED")
    assert world.end(2, "FAILURE") == set()
    assert world.end(1) == set()
    assert not world.may_begin(3)
    assert world.client.ttl(KEY) > 0


def test_a_run_that_is_opened_again_goes_on_with_what_was_held_back(world: World) -> None:
    """A dead letter is sent again, and succeeds: what could have started meanwhile starts as well."""
    world.begin()
    world.run_is("FAILED")
    world.end(2, "FAILURE")
    assert world.end(1) == set()
    world.run_is("RUNNING")
    assert world.end(2) == {3, 4}


def test_a_step_that_was_queued_and_found_its_run_failed_is_queued_again(world: World) -> None:
    world.begin()
    world.run_is("FAILED")
    world.end(2, "FAILURE")
    assert not world.may_begin(1)
    world.run_is("RUNNING")
    assert world.end(2) == {1}
    assert world.may_begin(1)
    assert world.end(1) == {3, 4}


def test_a_run_that_is_built_again_goes_on_from_what_has_succeeded(world: World) -> None:
    world.begin()
    world.end(1)
    world.run_is("FAILED")
    world.end(2, "FAILURE")
    world.run_is("RUNNING")
    assert world.begin() == {2, 3}
    assert (world.end(3), world.end(2), world.end(4), world.end(5)) == (set(), {4}, {5}, {6})


def test_a_run_that_is_started_anew_begins_anew(world: World) -> None:
    """Cancelled, say, while none of its steps could tell."""
    world.client.hset(run_key(RUN), "started_at", "1.5")
    assert (world.begin(), world.begin()) == ({1, 2}, set())
    world.end(1)
    world.client.hset(run_key(RUN), "started_at", "2.5")
    assert (world.begin(), world.begin()) == ({2, 3}, set())


def test_a_failure_that_the_run_lives_with_leaves_out_what_needs_it(world: World) -> None:
    world.begin()
    assert world.end(2, "FAILURE", tolerated=True) == set()
    assert world.end(2, "FAILURE", tolerated=True) == set()
    assert world.end(1) == {3}
    assert world.end(3) == {6}


def test_what_was_left_out_is_done_when_the_failed_step_succeeds_after_all(world: World) -> None:
    world.begin()
    world.end(2, "FAILURE", tolerated=True)
    world.end(1)
    world.end(3)
    world.run_is("FAILED")
    world.end(6, "FAILURE")
    world.run_is("RUNNING")
    assert world.end(2) == {4}
    assert (world.end(4), world.end(5)) == ({5}, {6})


def test_a_graph_has_places_and_ids_as_any_canvas() -> None:
    canvas = Graph([sample.add.si(1, 1), sample.add.si(2, 2)], sample.total.si([]), needs=[[], [0]])
    made = plan(canvas, RUN, app)
    planned, steps = made.canvas, made.steps
    assert [(step.place, step.name.rpartition(".")[2]) for step in steps] == [
        ("0", "add"),
        ("1", "add"),
        ("2", "total"),
    ]
    assert steps[-1].id == RUN
    assert isinstance(planned, Graph)
    assert planned.kwargs["needs"] == [[], [0]]
    assert [step.id for step in plan(canvas, RUN, app).steps] == [step.id for step in steps]


def test_a_step_that_is_a_canvas_is_refused() -> None:
    canvas = Graph([chain(sample.add.si(1, 1), sample.add.s(1))], sample.total.si([]))
    with pytest.raises(CanvasUnusable, match="each one task"):
        plan(canvas, RUN, app).canvas.apply_async()
