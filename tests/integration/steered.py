"""Workflows that the tests of cancelling and resuming run. Each step leaves a line in a ledger."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from celery import chain, chord, group

from tasks import task
from tests.integration.sample import append_line
from workflows import workflow


def line(ledger: str, text: str) -> None:
    append_line.run(ledger, text)


@task
def done(ledger: str, name: str) -> str:
    line(ledger, name)
    return name


@task
def take_back(name: str) -> None:
    ledger, _, name = name.partition(" ")
    line(ledger, f"undid {name}")


@task(undo=take_back)
def undoable(ledger: str, name: str) -> str:
    line(ledger, name)
    return f"{ledger} {name}"


@task
def joined(names: list[str], ledger: str) -> str:
    line(ledger, "joined")
    return "+".join(names)


@task
def then(before: str, ledger: str, name: str) -> str:
    line(ledger, name)
    return f"{before}>{name}"


@task
def fails_until(ledger: str, path: str, name: str = "cured") -> str:
    """Fails until the file `path` is there."""
    line(ledger, f"tries {name}")
    if not Path(path).exists():
        raise RuntimeError(f"{name} is not there")
    return name


@task
def obeys(ledger: str, started: str) -> None:
    """Runs for a minute; asked to end, it tidies up."""
    try:
        Path(started).touch()
        time.sleep(60)
    finally:
        line(ledger, "tidied")


@task
def does_not_obey(started: str) -> None:
    """Runs for a minute whatever it is asked."""
    deadline = time.monotonic() + 60
    Path(started).touch()
    while time.monotonic() < deadline:
        try:
            time.sleep(60)
        except Exception:  # noqa: BLE001 - that is what it is for
            continue


@task
def lets_be(ledger: str, path: str, name: str) -> str:
    """Waits for the file `path`."""
    deadline = time.monotonic() + 30
    while not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    line(ledger, name)
    return name


@workflow
def mended(ledger: str, path: str) -> Any:
    """A chain with a chord, one of whose members fails until `path` is there."""
    header = [done.si(ledger, "a"), fails_until.si(ledger, path), chain(done.si(ledger, "b"), then.s(ledger, "c"))]
    return chain(done.si(ledger, "first"), chord(header, joined.s(ledger)), then.s(ledger, "last"))


@workflow
def linked(ledger: str, path: str) -> Any:
    """Its first step has a callback, and its second fails."""
    return chain(done.si(ledger, "a").set(link=then.s(ledger, "linked")), fails_until.si(ledger, path))


@workflow
def outer(ledger: str, path: str) -> Any:
    """A run in a run."""
    return chain(done.si(ledger, "before"), mended.si(ledger, path), then.s(ledger, "after"))


@workflow
def moody(ledger: str, path: str, mood: str) -> Any:
    """Builds another canvas when the file `mood` is there."""
    other = then if Path(mood).exists() else fails_until
    return chain(done.si(ledger, "a"), other.si(ledger, path, "b"), done.si(ledger, "c"))


@workflow
def long(ledger: str, started: str) -> Any:
    return chain(done.si(ledger, "a"), obeys.si(ledger, started), done.si(ledger, "never"))


@workflow
def stubborn(started: str, ledger: str) -> Any:
    return chain(does_not_obey.si(started), done.si(ledger, "never"))


@workflow
def outer_long(ledger: str, started: str) -> Any:
    return chain(long.si(ledger, started), done.si(ledger, "never"))


@workflow
def many(ledger: str, count: int) -> Any:
    return chord([done.si(ledger, str(number)) for number in range(count)], joined.s(ledger))


@workflow
def cleaned_up(run_id: str, failure: dict[str, Any]) -> Any:
    ledger = failure["message"].partition(" ")[0]
    return done.si(ledger, f"cleans up {run_id}: {failure['type']} in {failure['place']}")


@task
def breaks(ledger: str) -> None:
    raise RuntimeError(f"{ledger} is broken")


@workflow(on_failure=cleaned_up, undo=True)
def saga(ledger: str) -> Any:
    return chain(
        undoable.si(ledger, "flight"),
        group(undoable.si(ledger, "hotel")),
        undoable.si(ledger, "car"),
        breaks.si(ledger),
    )


@workflow(on_error="finish")
def finishing(ledger: str, path: str) -> Any:
    """One member fails at once; the others go on, with what follows them."""
    waits = chain(lets_be.si(ledger, path, "w"), then.s(ledger, "x"))
    return chain(chord([breaks.si(ledger), waits], joined.s(ledger)), then.s(ledger, "never"))


@task
def one(ledger: str) -> str:
    line(ledger, "one")
    return "1"


@task
def two(before: str, ledger: str) -> str:
    line(ledger, "two")
    return before + "2"


@task
def three(before: str, ledger: str) -> str:
    line(ledger, "three")
    return before + "3"


@workflow
def three_kinds(ledger: str) -> Any:
    """A step with one that comes next, a member of a chord, and a last one."""
    chord_ = chord([two.s(ledger), done.si(ledger, "beside")], joined.s(ledger))
    return chain(one.si(ledger), chord_, three.s(ledger))


@workflow
def long_run(ledger: str, links: int, wide: int, deep: int) -> Any:
    """Chains in chords in a chain; each step takes some milliseconds, and says when it begins."""
    header = [chain(*(works.si(ledger) for _ in range(deep))) for _ in range(wide)]
    return chain(*(chord(header, works.si(ledger)) for _ in range(links)))


@task(bind=True)
def works(self: Any, ledger: str) -> None:
    line(ledger, self.request.id)
    time.sleep(0.003)
