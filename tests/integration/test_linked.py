"""What is linked to a canvas, or to a part of it, is called as often as Celery says, with what Celery says."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from celery.canvas import Signature
from celery.exceptions import ChordError

from tasks import app, task
from tests.integration import celery_shapes
from tests.integration.celery_shapes import add_by_another, broken, fail_by_another, same, same_by_a_chain
from tests.integration.conftest import running_system
from tests.integration.sample import append_line, note
from tests.integration.system import System
from tests.waiting import wait_until
from workflows import RunState, workflow

pytestmark = pytest.mark.filterwarnings("ignore:.*task_allow_error_cb_on_chord_header.*")

_MANY = 12


@task
def told_id(task_id: str, path: str) -> None:
    """An errback of the old style: a task of its own, which gets the id of what has failed."""
    append_line.run(path, task_id)


@task
def told_all(request: Any, error: BaseException, traceback: str | None, path: str) -> None:
    """One of the new style: called where the task has failed, with all there is to know."""
    append_line.run(path, request.id)


@task(bind=True)
def told_at_the_second_try(self: Any, task_id: str, path: str) -> None:
    if self.request.retries == 0:
        raise self.retry(countdown=0.02)
    append_line.run(path, task_id)


@task(bind=True)
def same_and_note(self: Any, value: Any, path: str) -> None:
    """Replaced by a chain that has its own callback."""
    raise self.replace(_linked(chain(same.s(value), same.s()), path))


@task(bind=True)
def fail_and_note(self: Any, value: Any, path: str) -> None:
    """Replaced by a chain that fails and has its own errback."""
    raise self.replace(_error_linked(chain(same.s(value), broken.s()), path))


def _linked(canvas: Signature, path: str) -> Signature:
    canvas.link(note.si(path))
    return canvas


def _error_linked(canvas: Signature, path: str) -> Signature:
    canvas.link_error(note.si(path))
    return canvas


#: Canvases that succeed, and how often what is linked to them, or in them, is called.
CALLED: dict[str, tuple[Callable[[str], Any], int]] = {
    "chain": (lambda path: _linked(chain(same.si(1), same.s()), path), 1),
    "group": (lambda path: _linked(group(same.si(1), same.si(2)), path), 1),
    "chord": (lambda path: _linked(chord([same.si(1), same.si(2)], same.s()), path), 1),
    "each of a chain": (lambda path: chain([_linked(same.si(1), path)] * _MANY), _MANY),
    "each of a group": (lambda path: group([_linked(same.si(1), path)] * _MANY), _MANY),
    "each of a header, and the body": (
        lambda path: chord([_linked(same.si(1), path)] * _MANY, _linked(same.s(), path)), _MANY + 1,
    ),
    "chain with a replaced task": (lambda path: _linked(chain(add_by_another.si(1, 1), same.s()), path), 1),
    "replaced task of a chain": (lambda path: chain(_linked(add_by_another.si(1, 1), path), same.s()), 1),
    "group with a replaced task": (lambda path: _linked(group(add_by_another.si(1, 1), same.si(1)), path), 1),
    "replaced task of a group": (lambda path: group(_linked(add_by_another.si(1, 1), path), same.si(1)), 1),
    "task replaced by a chain": (lambda path: _linked(same_by_a_chain.si(1), path), 1),
    "what replaces a task": (lambda path: chain(same.si(1), same_and_note.s(path), same.s()), 1),
    "what replaces a task, and its chain": (
        lambda path: _linked(chain(same.si(1), same_and_note.s(path), same.s()), path), 2,
    ),
}  # fmt: skip

#: Canvases that fail, and the same of them.
CALLED_FOR_A_FAILURE: dict[str, tuple[Callable[[str], Any], int]] = {
    "task": (lambda path: _error_linked(broken.si(), path), 1),
    "each of a chain": (lambda path: chain([_error_linked(broken.si(), path)] * _MANY), 1),
    "chain with a replaced task": (lambda path: _error_linked(chain(add_by_another.si(1, 1), broken.s()), path), 1),
    "replaced task of a chain": (lambda path: chain(_error_linked(fail_by_another.si(), path), same.si(1)), 1),
    "group with a replaced task": (lambda path: _error_linked(group(add_by_another.si(1, 1), broken.si()), path), 1),
    "replaced task of a group": (lambda path: group(_error_linked(fail_by_another.si(), path), same.si(1)), 1),
    "group whose first fails": (lambda path: _error_linked(group(broken.si(), same.si(1)), path), 1),
    "group whose last fails": (lambda path: _error_linked(group(same.si(1), broken.si()), path), 1),
    "what replaces a task": (lambda path: chain(same.si(1), fail_and_note.s(path), same.s()), 1),
    "what replaces a task, and its chain": (
        lambda path: _error_linked(chain(same.si(1), fail_and_note.s(path), same.s()), path), 2,
    ),
    "header": (lambda path: _error_linked(chord([broken.si()], same.s()), path), 1),
    "body": (lambda path: _error_linked(chord([same.si(1)], broken.s()), path), 1),
    "chain in a header": (lambda path: _error_linked(chord([_breaks()], same.s()), path), 1),
    "chain as a body": (lambda path: _error_linked(chord([same.si(1)], _breaks()), path), 1),
    "end of a chain in a header": (lambda path: _error_linked(chord([_breaks_at_last()], same.s()), path), 1),
    "end of a chain as a body": (lambda path: _error_linked(chord([same.si(1)], _breaks_at_last()), path), 1),
    "group in a header": (lambda path: _error_linked(chord([group(same.si(1), broken.si())], same.s()), path), 1),
    "group as a body": (lambda path: _error_linked(chord([same.si(1)], group(same.si(1), broken.s())), path), 1),
    "chord as a body": (
        lambda path: _error_linked(chord([same.si(1)], chord([same.si(1), broken.si()], same.s())), path), 1,
    ),
    "header before a chain as a body": (
        lambda path: _error_linked(chord([same.si(1), broken.si()], chain(same.s(), same.s())), path), 1,
    ),
    "body of a chord in a header, linked to both": (
        lambda path: _error_linked(chord([chord([same.si(1)], broken.s()), same.si(1)], same.s()), path), 2,
    ),
    "chord in a chain": (
        lambda path: _error_linked(chain(same.si(1), group(same.si(1), broken.si()), same.s(), same.s()), path), 1,
    ),
}  # fmt: skip

#: The same where Celery calls nothing, or nothing of the outer chord, and a run does.
CALLED_IN_A_RUN: dict[str, tuple[Callable[[str], Any], int]] = {
    "header of a chord in a header, linked to both": (
        lambda path: _error_linked(chord([chord([broken.si(), same.si(1)], same.s()), same.si(1)], same.s()), path), 2,
    ),
    "header of a chord in a header, linked to the outer": (
        lambda path: chord(
            [chord([broken.si(), same.si(1)], same.s()), same.si(1)], _error_linked(same.s(), path)
        ), 1,
    ),
    "header before a chord as a body": (
        lambda path: _error_linked(chord([same.si(1), broken.si()], chord([same.si(1)], same.s())), path), 1,
    ),
    "header before a group as a body": (
        lambda path: _error_linked(chord([same.si(1), broken.si()], group(same.si(1), same.si(2))), path), 1,
    ),
    "header with others that never begin": (
        lambda path: _error_linked(chord([broken.si(), *([chain(same.si(1), same.s())] * 9)], same.s()), path), 1,
    ),
    "several of a header": (lambda path: _error_linked(chord([broken.si()] * 3, same.s()), path), 1),
}  # fmt: skip

#: The same where several fail: of a run nothing more begins after the first.
CALLED_FOR_SEVERAL_FAILURES: dict[str, tuple[Callable[[str], Any], int]] = {
    "each of a group": (lambda path: group([_error_linked(broken.si(), path)] * _MANY), _MANY),
    "group": (lambda path: _error_linked(_half_breaks(), path), _MANY),
    "group in a header": (lambda path: _error_linked(chord([_half_breaks()], same.s()), path), 1),
    "group as a body": (lambda path: _error_linked(chord([same.si(1)], _half_breaks()), path), _MANY),
}


def _breaks() -> Signature:
    return chain(same.si(1), broken.s(), same.si(1))


def _breaks_at_last() -> Signature:
    return chain(same.si(1), broken.s())


def _half_breaks() -> Signature:
    return group(*(same.si(1) for _ in range(_MANY)), *(broken.si() for _ in range(_MANY)))


@workflow
def linked(shape: str, path: str) -> Any:
    return CALLED[shape][0](path)


@workflow
def error_linked(shape: str, path: str) -> Any:
    return (CALLED_FOR_A_FAILURE | CALLED_IN_A_RUN)[shape][0](path)


@pytest.fixture(scope="module", autouse=True)
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("system")) as system:
        system.start_worker(imports=f"{celery_shapes.IMPORTS},{__name__}")
        yield system


def _called(path: Path, calls: int, system: System) -> list[str]:
    """What the ledger says when nothing goes on any more."""
    wait_until(lambda: len(path.read_text().splitlines()) >= calls and system.is_idle(), what=f"{calls} calls")
    return path.read_text().splitlines()


@pytest.mark.parametrize("shape", CALLED)
def test_callbacks_of_what_is_sent_as_it_is(shape: str, plain: System, path: Path) -> None:
    build, calls = CALLED[shape]
    build(str(path)).apply_async().get(timeout=20, interval=0.02)
    assert len(_called(path, calls, plain)) == calls


@pytest.mark.parametrize("shape", CALLED)
def test_callbacks_in_a_run(shape: str, plain: System, path: Path) -> None:
    linked.delay(shape, str(path)).get(timeout=20)
    assert len(_called(path, CALLED[shape][1], plain)) == CALLED[shape][1]


@pytest.mark.parametrize("shape", CALLED_FOR_A_FAILURE)
def test_errbacks_of_what_is_sent_as_it_is(shape: str, plain: System, path: Path) -> None:
    build, calls = CALLED_FOR_A_FAILURE[shape]
    with pytest.raises((ValueError, ChordError), match="no good"):
        build(str(path)).apply_async().get(timeout=20, interval=0.02)
    assert len(_called(path, calls, plain)) == calls


@pytest.mark.parametrize("shape", CALLED_FOR_SEVERAL_FAILURES)
def test_errbacks_for_several_failures(shape: str, plain: System, path: Path) -> None:
    build, calls = CALLED_FOR_SEVERAL_FAILURES[shape]
    with pytest.raises((ValueError, ChordError), match="no good"):
        build(str(path)).apply_async().get(timeout=20, interval=0.02)
    assert len(_called(path, calls, plain)) == calls


@pytest.mark.parametrize("shape", CALLED_FOR_A_FAILURE | CALLED_IN_A_RUN)
def test_errbacks_in_a_run(shape: str, plain: System, path: Path) -> None:
    run = error_linked.delay(shape, str(path))
    with pytest.raises((ValueError, ChordError), match="no good"):
        run.get(timeout=20)
    assert run.progress.state is RunState.FAILED
    calls = (CALLED_FOR_A_FAILURE | CALLED_IN_A_RUN)[shape][1]
    assert len(_called(path, calls, plain)) == calls


@pytest.mark.parametrize("errback", [told_id, told_all])
@pytest.mark.parametrize("member", ["task", "chain", "end of a chain", "group", "group of failures"])
class TestWhatItIsTold:
    """Both styles get the id of the same task."""

    @staticmethod
    def _failing(member: str) -> tuple[Signature, list[str]]:
        """A canvas, and the ids of those of its tasks that fail."""
        fails = [broken.si() for _ in range(_MANY if member == "group of failures" else 1)]
        shapes: dict[str, Callable[[], Any]] = {
            "task": lambda: fails[0],
            "chain": lambda: chain(same.si(1), fails[0], same.si(1)),
            "end of a chain": lambda: chain(same.si(1), fails[0]),
            "group": lambda: group(same.si(1), fails[0]),
            "group of failures": lambda: group(same.si(1), *fails),
        }
        ids = [one.freeze().id for one in fails]
        return shapes[member](), ids

    def test_of_a_header_the_body(self, errback: Any, member: str, plain: System, path: Path) -> None:
        canvas = chord([self._failing(member)[0]], same.s())
        canvas.link_error(errback.s(path=str(path)))
        body_id = canvas.body.freeze().id
        with pytest.raises((ValueError, ChordError), match="no good"):
            canvas.apply_async().get(timeout=20, interval=0.02)
        assert _called(path, 1, plain) == [body_id]

    def test_of_a_body_its_task(self, errback: Any, member: str, plain: System, path: Path) -> None:
        body, failing = self._failing(member)
        canvas = chord([same.si(1)], body)
        canvas.link_error(errback.s(path=str(path)))
        with pytest.raises((ValueError, ChordError), match="no good"):
            canvas.apply_async().get(timeout=20, interval=0.02)
        assert sorted(_called(path, len(failing), plain)) == sorted(failing)


@pytest.mark.parametrize("errback", [told_id, told_all, told_at_the_second_try])
def test_an_errback_of_a_single_task(errback: Any, plain: System, path: Path) -> None:
    result = broken.apply_async(link_error=errback.s(path=str(path)))
    assert isinstance(result.get(timeout=20, propagate=False), ValueError)
    assert _called(path, 1, plain) == [result.id]


@pytest.mark.parametrize("errback", [told_id, told_all, told_at_the_second_try])
def test_an_errback_of_a_run_gets_the_runs_id(errback: Any, plain: System, path: Path) -> None:
    run = error_linked.apply_async(("header", str(path.with_name("other"))), link_error=errback.s(path=str(path)))
    with pytest.raises((ValueError, ChordError), match="no good"):
        run.get(timeout=20)
    assert _called(path, 1, plain) == [run.id]


def test_errbacks_in_a_run_that_fails_again_are_called_again(plain: System, path: Path) -> None:
    run = error_linked.delay("several of a header", str(path))
    for calls in (1, 2):
        with pytest.raises((ValueError, ChordError), match="no good"):
            run.get(timeout=20)
        assert len(_called(path, calls, plain)) == calls
        if calls == 1:
            run.resume()


def test_an_errback_by_name(plain: System, path: Path) -> None:
    failing, errback = app.signature(broken.name), app.signature(told_id.name, kwargs={"path": str(path)})
    failing.link_error(errback)
    result = failing.delay()
    with pytest.raises(ValueError, match="no good"):
        result.get(timeout=20)
    assert _called(path, 1, plain) == [result.id]


#: Headers, by which of their members fail.
HEADERS = ["-", "---", "-+", "+--+"]


@pytest.mark.parametrize(
    ("linked_to", "header"),
    [
        *itertools.product(["body and members", "chord"], HEADERS),
        # Of a group of one and a task Celery makes a chain of two tasks.
        *(("chain of a group and a task", header) for header in HEADERS if len(header) > 1),
    ],
)
def test_errbacks_of_headers_too_where_the_app_says_so(
    linked_to: str, header: str, plain: System, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(app.conf, "task_allow_error_cb_on_chord_header", True)
    members = [broken.si() if member == "-" else same.si(1) for member in header]
    body = append_line.si(str(path), "the body has run")
    if linked_to == "chain of a group and a task":
        canvas: Any = _error_linked(chain(group(members), body), str(path))
    elif linked_to == "chord":
        canvas = _error_linked(chord(members, body), str(path))
    else:
        canvas = chord([_error_linked(member, str(path)) for member in members], _error_linked(body, str(path)))
    with pytest.raises((ValueError, ChordError), match="no good"):
        canvas.apply_async().get(timeout=20, interval=0.02)
    calls = header.count("-") + 1
    said = _called(path, calls, plain)
    assert len(said) == calls
    assert "the body has run" not in said


@pytest.mark.parametrize("header", HEADERS)
def test_errbacks_of_bodies_alone_where_it_does_not(header: str, plain: System, path: Path) -> None:
    members = [broken.si() if member == "-" else same.si(1) for member in header]
    canvas = _error_linked(chord(members, append_line.si(str(path), "the body has run")), str(path))
    with pytest.raises((ValueError, ChordError), match="no good"):
        canvas.apply_async().get(timeout=20, interval=0.02)
    said = _called(path, 1, plain)
    assert len(said) == 1
    assert "the body has run" not in said
