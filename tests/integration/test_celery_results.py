"""What Celery says of results, ids, order and signatures holds for canvases that a caller sends."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group, signature
from celery.canvas import Signature, _chain, _chord
from celery.exceptions import ChordError, ImproperlyConfigured, NotRegistered
from celery.result import AsyncResult, GroupResult, ResultSet

from tasks import app, task
from tests.integration import celery_shapes
from tests.integration.celery_shapes import broken, same
from tests.integration.conftest import running_system
from tests.integration.sample import add, append_line, note, total
from tests.integration.system import System
from tests.waiting import wait_until


@task(bind=True)
def ids(self: Any, number: int) -> list[Any]:
    """Its root's id, its parent's, and the number."""
    return [self.request.root_id, self.request.parent_id, number]


@task(bind=True)
def collected_ids(self: Any, before: list[Any], number: int) -> list[Any]:
    return [before, [self.request.root_id, self.request.parent_id, number]]


@task(bind=True)
def replaced_twice(self: Any, path: str, depth: int = 0) -> None:
    """Replaced by one that is replaced: what comes after the inner one comes before what comes after the outer."""
    append_line.run(path, f"in {depth}")
    inner = replaced_twice.si(path, depth + 1) if depth < 2 else append_line.si(path, "innermost")
    raise self.replace(chain(inner, append_line.si(path, f"out {depth}")))


@task(bind=True)
def replaced_by_nothing(self: Any, *_: Any) -> None:
    raise self.replace(chain())


@task
def result_of_a_chain() -> Any:
    """Hands out the result object of what it has called."""
    return (add.s(1, 1) | add.s(2) | group(add.s(3), add.s(4)) | total.s()).apply_async()


@task
def calls_a_canvas(number: int) -> int:
    """The chain and the chord that it calls are called where it is."""
    (add.s(number, number) | add.s(1)).apply_async()
    chord([add.s(number, number)], total.s()).apply_async()
    return number


@task(bind=True)
def factorial(self: Any, number: int) -> int:
    """Calls itself, as a function."""
    return 1 if number < 2 else number * self(number - 1)


@task
def nested_signature(outer: str, inner: str) -> Any:
    return _nested(outer, inner)


@task
def rebuilt(canvas: dict[str, Any]) -> list[str]:
    """The kinds of all nodes of a canvas that has come as JSON."""
    return list(_kinds(Signature.from_dict(canvas)))


def _nested(outer: str, inner: str) -> Any:
    def make(kind: str, of: Any) -> Any:
        # The classes themselves: the functions would make less of a canvas of one.
        if kind == "chain":
            return _chain(of, app=app)
        return group([of]) if kind == "group" else _chord([of], body=add.s(), app=app)

    return make(outer, make(inner, add.s()))


def _kinds(node: Any) -> Iterator[str]:
    assert isinstance(node, Signature), node
    yield node.task
    if isinstance(node, (_chain, _chord, group)):
        for child in node.tasks:
            yield from _kinds(child)
    if isinstance(node, _chord):
        yield from _kinds(node.body)


@pytest.fixture(scope="module", autouse=True)
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("system")) as system:
        system.start_worker(imports=f"{celery_shapes.IMPORTS},{__name__}")
        yield system


def _say(path: Path, *words: str) -> group:
    return group(append_line.si(str(path), word) for word in words)


class TestOrder:
    def test_a_group_has_ended_before_what_comes_after_it(self, path: Path) -> None:
        (_say(path, "a", "a", "a") | append_line.si(str(path), "b") | _say(path, "c", "c")).delay().get(timeout=20)
        assert path.read_text().split() == ["a", "a", "a", "b", "c", "c"]

    def test_what_replaces_a_replaced_task_ends_inside_out(self, path: Path) -> None:
        replaced_twice.delay(str(path)).get(timeout=20)
        said = ["in 0", "in 1", "in 2", "innermost", "out 2", "out 1", "out 0"]
        assert path.read_text().splitlines() == said

    @pytest.mark.parametrize("start", ["groups", "a chord with a group", "a chord with a group and a task"])
    def test_each_task_of_a_chain_of_groups_runs_once(self, start: str, plain: System, path: Path) -> None:
        first, second, rest = _say(path, *"123"), _say(path, *"456"), [_say(path, "8"), append_line.si(str(path), "9")]
        starts: dict[str, Callable[[], list[Any]]] = {
            "groups": lambda: [first, second, _say(path, "7")],
            "a chord with a group": lambda: [chord(first, second), _say(path, "7")],
            "a chord with a group and a task": lambda: [chord(first, second), append_line.si(str(path), "7")],
        }
        chain(*starts[start](), *rest).delay().get(timeout=20)
        wait_until(plain.is_idle, what="the end of all")
        assert sorted(path.read_text().split()) == list("123456789")

    def test_a_group_then_a_group_in_a_chain_then_a_chain(self, plain: System, path: Path) -> None:
        canvas = chain(_say(path, "a", "a") | _say(path, "a", "a"), _say(path, "b").tasks[0] | _say(path, "c").tasks[0])
        canvas.delay().get(timeout=20)
        wait_until(plain.is_idle, what="the end of all")
        assert sorted(path.read_text().split()) == ["a", "a", "a", "a", "b", "c"]


class TestIds:
    def test_of_a_chain(self) -> None:
        last = chain(ids.si(number) for number in range(10)).delay()
        last.get(timeout=20)
        results = [last]
        while results[0].parent:
            results.insert(0, results[0].parent)
        parents = [None, *(result.id for result in results)]
        assert [result.get(timeout=20) for result in results] == [
            [results[0].id, parent, number] for number, parent in enumerate(parents[:-1])
        ]

    def test_of_a_group_after_two_tasks(self) -> None:
        members = (ids.si(1) | ids.si(2) | group(ids.si(number) for number in range(20))).delay()
        root, parent = members.parent.parent.id, members.parent.id
        assert members.get(timeout=20) == [[root, parent, number] for number in range(20)]

    @pytest.mark.parametrize("by", ["|", "chain and chord"])
    def test_of_a_chord_between_tasks(self, by: str) -> None:
        members = group(ids.si(number) for number in range(3, 20))
        canvas: Any = (
            ids.si(1) | ids.si(2) | members | collected_ids.s(50) | ids.si(51)
            if by == "|"
            else chain(ids.si(1), ids.si(2), chord(members, chain(collected_ids.s(50), ids.si(51))))
        )
        last = canvas.delay()
        body, header = last.parent, last.parent.parent
        second, first = header.parent, header.parent.parent
        assert isinstance(header, GroupResult)
        assert last.get(timeout=20) == [first.id, body.id, 51]
        before, (root, parent, number) = body.get(timeout=20)
        assert (root, number) == (first.id, 50)
        assert parent in {member.id for member in header.results}
        assert before == [[first.id, second.id, number] for number in range(3, 20)]
        assert second.get(timeout=20) == [first.id, first.id, 2]
        assert first.get(timeout=20) == [first.id, None, 1]


class TestResults:
    def test_a_set_of_results(self) -> None:
        assert ResultSet([add.delay(1, 1), add.delay(2, 2)]).get(timeout=20) == [2, 4]

    def test_a_set_of_results_with_a_failure(self) -> None:
        results = ResultSet([broken.delay(), add.delay(1, 1)])
        results.get(timeout=20, propagate=False)
        assert (results.results[0].failed(), results.results[1].successful()) == (True, True)

    def test_a_group_with_a_failure_is_ready(self) -> None:
        result = group([add.s(1, 2), broken.si()]).apply_async()
        wait_until(result.ready, what="the end of the group")

    @pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # by Celery
    def test_an_empty_group_can_be_saved_and_restored(self) -> None:
        result = group([]).apply_async()
        result.save()
        assert GroupResult.restore(result.id, app=app).results == []

    def test_a_result_object_can_be_a_result(self) -> None:
        (last, header), none = result_of_a_chain.delay().get(timeout=20)
        assert none is None
        assert isinstance(header, list)
        assert AsyncResult(last[0] if isinstance(last, list) else last, app=app).get(timeout=20) == 15

    def test_no_subscription_is_left(self, plain: System) -> None:
        before = set(plain.client.pubsub_channels("celery-task-meta-*"))
        results = [chord([add.s(5, 6), add.s(6, 7)], total.s()).delay() for _ in range(10)]
        results += [add.delay(1, 2)]
        assert set(plain.client.pubsub_channels("celery-task-meta-*")) == before
        assert [result.get(timeout=20) for result in results] == [24] * 10 + [3]
        for result in results:
            result.forget()
        wait_until(
            lambda: set(plain.client.pubsub_channels("celery-task-meta-*")) == before, what="the end of subscriptions"
        )

    def test_what_is_forgotten_is_waited_for_no_more(self) -> None:
        before = _waiting()
        parts = (add.s(1) | group(add.si(1, 1), add.si(2, 2)) | add.si(2, 2) for _ in range(2))
        result = (add.si(1, 1) | group(*parts) | add.si(1, 1)).apply_async()
        assert _waiting() > before
        result.forget()
        assert _waiting() == before


def _waiting() -> set[str]:
    """The ids of the tasks that somebody in this process may wait for."""
    return {task_id for waiters in app.backend._pending_results for task_id in waiters}


@pytest.mark.filterwarnings("ignore:.*task_allow_error_cb_on_chord_header.*")
class TestFailures:
    def test_all_of_a_chain_after_a_failure_have_it(self) -> None:
        last = chain(add.s(1, 2), broken.s(), add.s(3)).delay()
        for result in (last, last.parent):
            with pytest.raises(ValueError, match="no good"):
                result.get(timeout=20)

    @pytest.mark.parametrize(
        "canvas",
        [
            lambda: add.s(1, 1) | add.s(1) | group(add.s(1), broken.s()),
            lambda: chain(same.si(1), group(same.si(2), broken.si()), same.si(3), same.si(4)),
            lambda: chord([same.si(1), broken.si()], group([same.si(1), same.si(2)])),
            lambda: chord([same.si(1), broken.si()], chord([same.si(1), same.si(2)], same.si(3))),
        ],
        ids=["in a group", "in the header of a chain", "before a group body", "before a chord body"],
    )  # fmt: skip
    def test_it_reaches_who_waits(self, canvas: Callable[[], Any], plain: System) -> None:
        with pytest.raises((ValueError, ChordError), match="no good"):
            canvas().delay().get(timeout=20, interval=0.02)
        wait_until(plain.is_idle, what="the end of all")
        assert "task_id must not be empty" not in plain.workers[0].log

    def test_of_a_failed_header_the_results_are_kept(self, plain: System, path: Path) -> None:
        body = same.s().on_error(append_line.si(str(path), "told"))
        result = chord([add.s(1, 2), add.s(3, 4), broken.si()], body).delay()
        with pytest.raises(ValueError, match="no good"):
            result.get(timeout=20)
        wait_until(lambda: path.read_text() == "told\n", what="what is linked to the body")
        wait_until(lambda: result.state == "FAILURE", what="the failure of the body")
        failed = re.search(r"[0-9a-f]{8}-[0-9a-f-]{27}", str(result.result))
        assert failed
        assert failed[0] == result.parent.results[2].id
        group_id = app.backend.get_task_meta(failed[0])["group_id"]
        kept = [app.backend.decode(one) for one in app.backend.client.zrange(_joined_key(group_id), 0, -1)]
        assert [(state, value) for _, _, state, value in kept[:2]] == [("SUCCESS", 3), ("SUCCESS", 7)]
        assert [state for _, _, state, _ in kept[2:]] == ["FAILURE"]

    def test_a_task_that_no_worker_knows_fails_its_chord(self) -> None:
        unknown = signature("no.such.task", app=app)
        with pytest.raises((NotRegistered, ChordError)):
            chord([add.s(1, 1), unknown], total.s()).delay().get(timeout=20)
        with pytest.raises((NotRegistered, ChordError)):
            chord([add.s(1, 1), add.s(1, 1)], unknown).delay().get(timeout=20)

    def test_a_task_can_not_be_replaced_by_nothing(self) -> None:
        with pytest.raises(ImproperlyConfigured, match="Cannot replace with an empty chain"):
            chain(same.s(1), replaced_by_nothing.s()).delay().get(timeout=20)


def _joined_key(group_id: str) -> Any:
    return app.backend.get_key_for_group(group_id, ".j")


@pytest.mark.filterwarnings("ignore:.*task_allow_error_cb_on_chord_header.*")
class TestSending:
    def test_for_later_with_an_errback(self, path: Path) -> None:
        canvas = chain(group(add.s(1, 2), add.s(3, 4)), total.s()).on_error(note.si(str(path)))
        due = datetime.now(UTC) + timedelta(seconds=0.7)
        result = canvas.apply_async(eta=due)
        assert result.get(timeout=20) == 10
        assert datetime.now(UTC) > due
        assert path.read_text() == ""

    def test_a_chain_of_one_to_a_queue_of_its_own(self, plain: System) -> None:
        chain([chain(signature("any.name", queue="elsewhere", app=app))]).apply_async()
        waiting = list(plain.client.scan_iter("elsewhere*"))
        assert [plain.client.llen(key) for key in waiting] == [1]
        plain.client.delete(*waiting)

    def test_by_a_task_that_is_called_where_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(app.conf, "task_always_eager", True)
        assert calls_a_canvas.apply_async((4,), throw=True).get() == 4
        assert chain(add.s(1, 1), group(add.s(1), add.s(2)), total.s()).apply_async().get() == 7

    def test_where_it_is_with_an_errback(self, path: Path) -> None:
        by_name = signature(append_line.name, (str(path), "told"), immutable=True)
        for link_error in (append_line.si(str(path), "told"), by_name):
            assert isinstance(broken.apply(link_error=link_error).get(propagate=False), ValueError)
        assert path.read_text().split() == ["told", "told"]

    def test_arguments_of_a_chain_reach_what_it_begins_with(self) -> None:
        assert chain(chord([same.s(), same.s()], same.s()), same.s()).apply_async((1,)).get(timeout=20) == [1, 1]
        assert chain(same.s(), add.s(1)).apply_async((1,)).get(timeout=20) == 2
        assert chain(chain(same.s(), add.s(1))).apply_async((1,)).get(timeout=20) == 2

    def test_a_task_may_call_itself_as_a_function(self) -> None:
        assert factorial.delay(5).get(timeout=20) == 120
        assert chain(factorial.s(4), same.s()).delay().get(timeout=20) == 24


@pytest.mark.parametrize("inner", ["chain", "group", "chord"])
@pytest.mark.parametrize("outer", ["chain", "group", "chord"])
def test_a_nested_signature_can_be_a_result(outer: str, inner: str) -> None:
    found = chain(nested_signature.s(outer, inner), rebuilt.s()).delay().get(timeout=20)
    assert found == list(_kinds(_nested(outer, inner)))
