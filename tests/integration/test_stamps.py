"""Stamps: each task of a canvas has them, whatever becomes of it, and can be revoked by them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from celery.canvas import Signature, StampingVisitor
from celery.exceptions import ChordError, TaskRevokedError
from celery.signals import before_task_publish

from tasks import app, task
from tasks.base import BaseTask
from tests.integration import celery_shapes
from tests.integration.celery_shapes import broken, same
from tests.integration.conftest import running_system
from tests.integration.sample import append_line
from tests.integration.system import System
from tests.waiting import wait_until
from workflows import RunState, workflow


class Stamp(StampingVisitor):
    """The same for every task."""

    def __init__(self, **stamps: Any) -> None:
        self._stamps = stamps

    def on_signature(self, sig: Signature, **headers: Any) -> dict[str, Any]:
        return self._stamps


class StampsOnReplace(BaseTask):
    """Adds one to what it is replaced by."""

    abstract = True

    def on_replace(self, sig: Any) -> Any:
        sig.stamp(Stamp(added="as replaced"))
        return super().on_replace(sig)


@task(bind=True)
def tell(self: Any, *_: Any, path: str) -> int:
    """Its stamps."""
    append_line.run(path, json.dumps(self.request.stamps))
    return 1


@task(bind=True)
def tell_and_fail(self: Any, *_: Any, path: str) -> None:
    tell.run.__func__(self, path=path)
    raise ValueError("no good")


@task(bind=True)
def tell_at_each_try(self: Any, path: str) -> list[Any]:
    tell.run.__func__(self, path=path)
    if self.request.retries == 0:
        raise self.retry(countdown=0.02)
    return [self.request.delivery_info["priority"], self.request.headers]


@task(bind=True)
def replaced(self: Any, *_: Any, path: str) -> None:
    raise self.replace(tell.s(path=path))


@task(bind=True)
def replaced_by_a_chord(self: Any, *_: Any, path: str) -> None:
    raise self.replace(chord([tell.s(path=path), chain(tell.s(path=path), tell.s(path=path))], tell.s(path=path)))


@task(bind=True, base=StampsOnReplace)
def replaced_with_a_stamp_more(self: Any, path: str) -> None:
    raise self.replace(chain(tell.s(path=path), tell.s(path=path)))


#: Canvases of tasks that tell their stamps, and how many of them do.
CANVASES: dict[str, tuple[Callable[[Signature], Any], int]] = {
    "task": (lambda each: each, 1),
    "group": (lambda each: group(each, each), 2),
    "chain": (lambda each: chain(each, each), 2),
    "chord": (lambda each: chord([each, each], each), 3),
    "chain of a group and a task": (lambda each: chain(group(each), each), 2),
    "chains in a group": (lambda each: group(each | each, each | each), 4),
    "chains in a chain": (lambda each: chain(chain(each | each, each | each), each | each), 6),
    "chains in a header": (lambda each: chord([each | each, each | each], each), 5),
    "chain and chord in a header": (lambda each: chord(group(chain(each, each), chord([each, each], each)), each), 6),
    "groups in a chain": (lambda each: chain(group(each, each) | each, chord(group(each, each), each)), 6),
    "members of a generator": (lambda each: chord((each.clone() for _ in range(3)), each), 4),
    "replaced": (lambda each: chain(each, replaced.s(path=each.kwargs["path"]), each), 3),
    "replaced by a chord": (
        lambda each: chord([each, replaced_by_a_chord.s(path=each.kwargs["path"])], each), 6,
    ),
    "linked": (lambda each: chain(each.clone().set(link=[each.clone()]), each), 3),
}  # fmt: skip


@workflow
def telling(shape: str, path: str) -> Any:
    return CANVASES[shape][0](tell.s(path=path))


@pytest.fixture(scope="module", autouse=True)
def stamping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("system")) as system:
        system.start_worker(imports=f"{celery_shapes.IMPORTS},{__name__}")
        yield system


def _told(path: Path, times: int, system: System) -> list[dict[str, Any]]:
    """The stamps of all that have told theirs, when nothing goes on any more."""
    wait_until(lambda: len(path.read_text().splitlines()) >= times and system.is_idle(), what=f"{times} tasks")
    return [json.loads(line) for line in path.read_text().splitlines()]


def _stamped(canvas: Signature, **stamps: Any) -> Signature:
    canvas.stamp(Stamp(**stamps))
    return canvas


@pytest.mark.parametrize("shape", CANVASES)
def test_each_task_of_a_canvas_has_them(shape: str, stamping: System, path: Path) -> None:
    build, tasks = CANVASES[shape]
    _stamped(build(tell.s(path=str(path))), ticket=42).apply_async().get(timeout=20, interval=0.02)
    assert _told(path, tasks, stamping) == [{"ticket": 42}] * tasks


@pytest.mark.parametrize("shape", CANVASES)
def test_each_step_of_a_stamped_run_has_them(shape: str, stamping: System, path: Path) -> None:
    tasks = CANVASES[shape][1]
    _stamped(telling.s(shape, str(path)), ticket=42).apply_async().get(timeout=20, interval=0.02)
    assert _told(path, tasks, stamping) == [{"ticket": 42}] * tasks


@pytest.mark.parametrize("value", [42, [4, 2], "a word"])
def test_a_value_arrives_as_the_visitor_has_it(value: Any, stamping: System, path: Path) -> None:
    _stamped(tell.s(path=str(path)), ticket=value).apply_async().get(timeout=20, interval=0.02)
    assert _told(path, 1, stamping) == [{"ticket": value}]


def test_they_travel_as_headers_and_are_no_properties(path: Path) -> None:
    sent: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def keep(headers: dict[str, Any], properties: dict[str, Any], **_: Any) -> None:
        sent.append((headers, properties))

    before_task_publish.connect(keep)
    try:
        _stamped(tell.s(path=str(path)), ticket=42).apply_async().get(timeout=20, interval=0.02)
    finally:
        before_task_publish.disconnect(keep)
    headers, properties = sent[0]
    assert (headers["stamped_headers"], headers["stamps"]) == (["ticket"], {"ticket": 42})
    assert properties.keys() & {"stamped_headers", "stamps", "ticket"} == set()


def test_what_replaces_a_task_has_the_tasks_and_its_own(stamping: System, path: Path) -> None:
    _stamped(replaced_with_a_stamp_more.s(path=str(path)), ticket=42).apply_async().get(timeout=20, interval=0.02)
    assert _told(path, 2, stamping) == [{"ticket": 42, "added": "as replaced"}] * 2


def test_a_stamp_of_its_own_is_not_replaced_by_that_of_the_run(stamping: System, path: Path) -> None:
    own = telling.s("chain", str(path))
    own.stamp(Stamp(ticket=1))
    own.stamp(Stamp(ticket=2, more=3))
    own.apply_async().get(timeout=20, interval=0.02)
    assert _told(path, 2, stamping) == [{"ticket": 2, "more": 3}] * 2


@pytest.mark.parametrize("option", ["link", "link_error"])
def test_what_is_linked_between_two_stampings_has_the_last(option: str, stamping: System, path: Path) -> None:
    canvas = _stamped(tell.s(path=str(path)) if option == "link" else broken.si(), ticket=1)
    getattr(canvas, option)(tell.si(path=str(path)))
    _stamped(canvas, ticket=2).apply_async().get(timeout=20, interval=0.02, propagate=False)
    times = 2 if option == "link" else 1
    assert _told(path, times, stamping) == [{"ticket": 2}] * times


def test_errbacks_of_a_chord_have_them(stamping: System, path: Path) -> None:
    body = tell.s(path=str(path)).on_error(tell.si(path=str(path)))
    canvas = _stamped(chord([tell_and_fail.s(path=str(path)), same.si(1)], body), ticket=42)
    with pytest.raises((ValueError, ChordError), match="no good"):
        canvas.apply_async().get(timeout=20, interval=0.02)
    assert _told(path, 2, stamping) == [{"ticket": 42}] * 2


def test_a_retry_keeps_stamps_headers_and_priority(stamping: System, path: Path) -> None:
    retried = _stamped(tell_at_each_try.s(path=str(path)), ticket=42)
    priority, headers = retried.apply_async(priority=7, headers={"x-own": "kept"}).get(timeout=20)
    assert (priority, headers["x-own"]) == (7, "kept")
    assert _told(path, 2, stamping) == [{"ticket": 42}] * 2


#: Canvases with one task that is revoked, which fail for that.
REVOKED: dict[str, Callable[[Signature], Any]] = {
    "task": lambda revoked: revoked,
    "group": lambda revoked: group(same.si(1), revoked, same.si(1)),
    "group of one": lambda revoked: group([revoked]),
    "header": lambda revoked: chord([same.si(1), revoked], same.si(1)),
    "header of one": lambda revoked: chord(group([revoked]), same.si(1)),
    "body": lambda revoked: chord([same.si(1), same.si(1)], revoked),
    "chain of one": lambda revoked: chain(revoked),
    "end of a chain": lambda revoked: chain(same.si(1), revoked),
    "group at the end of a chain": lambda revoked: chain(same.si(1), group([same.si(1), revoked, same.si(1)])),
    "group in a chain": lambda revoked: chain(same.si(1), group([same.si(1), revoked]), same.si(1)),
    "body in a chain": lambda revoked: chain(same.si(1), group([same.si(1), same.si(1)]), revoked),
}


@workflow
def partly_revoked(shape: str, path: str) -> Any:
    return REVOKED[shape](_stamped(tell.si(path=path), order="revoked in a run"))


def _revoke(**stamps: Any) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = app.control.revoke_by_stamped_headers(stamps, reply=True, limit=1, timeout=10)
    return answers


@pytest.mark.parametrize("shape", REVOKED)
def test_a_task_is_revoked_by_its_stamp_anywhere_in_a_canvas(shape: str, path: Path) -> None:
    assert _revoke(order=[f"revoked {shape}", "another"])
    revoked = _stamped(tell.si(path=str(path)), order=f"revoked {shape}")
    result = revoked.freeze()
    with pytest.raises((TaskRevokedError, ChordError), match="revoked"):
        REVOKED[shape](revoked).apply_async().get(timeout=20, interval=0.02)
    wait_until(result.ready, what="the state of the task itself")
    assert result.state == "REVOKED"
    assert path.read_text() == ""


@pytest.mark.parametrize("shape", REVOKED)
def test_a_step_that_is_revoked_by_its_stamp_cancels_its_run(shape: str, path: Path) -> None:
    assert _revoke(order="revoked in a run")
    run = partly_revoked.delay(shape, str(path))
    with pytest.raises((TaskRevokedError, ChordError)):
        run.get(timeout=20)
    wait_until(lambda: run.progress.ended, what="the end of the run")
    assert run.progress.state is RunState.CANCELLED
    assert path.read_text() == ""


def test_tasks_with_other_stamps_are_not(path: Path) -> None:
    (answer,) = _revoke(order=["nobody's"])
    assert "flagged as revoked" in next(iter(answer.values()))["ok"]
    for stamps in ({"order": "somebody's"}, {"other": "nobody's"}):
        assert _stamped(tell.si(path=str(path)), **stamps).apply_async().get(timeout=20, interval=0.02) == 1
