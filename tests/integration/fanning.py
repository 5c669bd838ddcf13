"""Tasks and workflows that start others: too many, too deep, or to wait for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from celery import chain, chord, group
from celery.result import allow_join_result

from tasks import task
from tasks.base import BaseTask
from tests.integration.sample import add, flaky, hand_over, ignored, join, total, wait_for_file
from workflows import FanOutExceeded, workflow


@task
def dig(folder: str, depth: int = 1) -> int:
    """Start itself again, for ever, and leave a file for each depth that was reached."""
    Path(folder, str(depth)).touch()
    dig.delay(folder, depth + 1)
    return depth


@task
def breed(folder: str) -> None:
    """Start itself twice, for ever."""
    Path(folder, breed.request.id).touch()
    group(breed.s(folder), breed.s(folder)).delay()


@task(bind=True)
def go_on(self: Any, turns: int) -> int:
    """A loop of as many turns, each in the place of the one before: three tasks."""
    if turns == 0:
        return 0
    raise self.replace(chain(add.s(turns, -1), go_on_after.s()))


@task(bind=True)
def go_on_after(self: Any, turns: int) -> int:
    raise self.replace(go_on.s(turns))


@task
def spread(count: int) -> int:
    """Start as many others."""
    return len(group(add.s(1, 1) for _ in range(count)).delay().results)


@task
def spread_or_not(count: int) -> str:
    """Start as many others and one that comes after them, or live with a refusal."""
    try:
        chord([add.s(1, 1) for _ in range(count)], total.s()).delay()
    except FanOutExceeded as error:
        return error.setting
    return "accepted"


@task
def start_run(name: str, *args: Any) -> str:
    """Start a run; its id."""
    run_id: str = globals()[name].delay(*args).id
    return run_id


@task
def wait_for_child(how: str, path: str) -> Any:
    """Wait for a task that was started here; it goes on when the file `path` is there."""
    if how == "group":
        return group(wait_for_file.s(path), wait_for_file.s(path)).delay().get(disable_sync_subtasks=False)
    child = wait_for_file.delay(path)
    if how == "allowed":
        with allow_join_result():
            return child.get(timeout=20)
    if how == "not checked":
        return child.get(timeout=20, disable_sync_subtasks=False)
    if how == "when ready":
        while not child.ready():
            pass
    return child.get(timeout=20)


@task
def send(shape: str) -> None:
    """Send a canvas from a body."""
    canvases = {
        "chain": lambda: chain(add.s(1, 1), add.s(1), add.s(1)),
        "chord": lambda: chord([add.s(1, 1), add.s(2, 2)], total.s()) | add.s(1),
        "chord in a chord": lambda: chord([chord([add.s(1, 1), add.s(2, 2)], total.s()), add.s(3, 3)], total.s()),
        "linked": lambda: add.s(1, 1).on_error(ignored.si(1)) | add.s(1).set(link=add.s(1)),
        "failing": lambda: chord([fail_at_once.si(), add.s(1, 1)], total.s()),
        "failing chain": lambda: chain(fail_at_once.si(), add.si(1, 1)),
        "retried": lambda: flaky.s(1),
        "replaced": lambda: hand_over.s(1) | add.s(1),
        "replaced by a group": lambda: hand_to_group.s(2),
        "ignored": lambda: ignored.s(1),
        "later": lambda: add.s(1, 1).set(countdown=0.1),
        "run in a chain": lambda: chain(add.si(1, 1), wide.si(3)),
        "run in a place": lambda: hand_to_run.s(),
    }
    canvases[shape]().delay()


@task(bind=True)
def hand_to_group(self: Any, count: int) -> None:
    raise self.replace(group(add.s(1, 1) for _ in range(count)))


@task(bind=True)
def hand_to_run(self: Any) -> None:
    raise self.replace(wide.s(3))


@workflow
def sending(shape: str) -> Any:
    return chain(send.si(shape))


@workflow
def wide(count: int) -> Any:
    """As many steps."""
    return chord([add.si(number, 0) for number in range(count - 1)], total.s())


@workflow
def waiting_long(count: int, path: str) -> Any:
    """As many, one after the other, when the file `path` is there."""
    return chain(wait_for_file.si(path), *(add.si(number, 0) for number in range(count - 1)))


@workflow
def spreading(count: int) -> Any:
    return chain(spread.s(count))


@workflow
def nested(levels: int) -> Any:
    """A run in a run in a run."""
    return chain(nested.si(levels - 1), join.si(["up"])) if levels > 1 else chain(join.si(["bottom"]))


@workflow
def digging(folder: str, go: str) -> Any:
    """Its last step waits for the file `go`."""
    return chain(dig.si(folder), wait_for_file.si(go))


@workflow
def looping(turns: int) -> Any:
    return chain(go_on.si(turns), add.s(1))


@workflow
def slow_to_build(count: int, path: str, started: str) -> Any:
    """Its canvas is recorded, and it makes the file `started`; it is sent when the file `path` is there."""
    return wide.build(count)


def _send_later(canvas: Any) -> Any:
    _, path, started = slow_to_build.request.args
    wait_for_file.run(path, started=started)
    return BaseTask.on_replace(slow_to_build, canvas)


slow_to_build.on_replace = _send_later


@task
def wait_for_run() -> Any:
    return wide.delay(3).get(timeout=20)


@workflow
def starting(name: str, *args: Any) -> Any:
    return chain(start_run.si(name, *args))


@workflow
def failing_beside(count: int) -> Any:
    """Fails with as many steps still to come."""
    return chain(fail_at_once.si(), *(add.si(1, 1) for _ in range(count)))


@workflow
def failing_chord(count: int) -> Any:
    return chord([fail_at_once.si(), *(add.si(1, 1) for _ in range(count))], total.s())


@workflow
def no_canvas() -> Any:
    return 7


@task
def fail_at_once() -> None:
    raise ValueError("at once")


#: How many steps each of the shapes below has.
STEPS_CALLED = {
    "task": 1,
    "retried": 1,
    "ignored": 1,
    "failing": 1,
    "replaced": 3,
    "chain": 3,
    "group": 3,
    "chord": 3,
    "run": 4,
    "failing run": 4,
    "no canvas": 1,
}


def called(shape: str) -> Any:
    """What an agent may call from outside."""
    shapes = {
        "task": lambda: add.s(1, 1),
        "retried": lambda: flaky.s(1),
        "ignored": lambda: ignored.s(1),
        "failing": lambda: fail_at_once.s(),
        "replaced": lambda: hand_over.s(1),
        "chain": lambda: chain(add.s(1, 1), add.s(1), add.s(1)),
        "group": lambda: group(add.s(1, 1) for _ in range(3)),
        "chord": lambda: chord([add.s(1, 1), add.s(2, 2)], total.s()),
        "run": lambda: wide.s(4),
        "failing run": lambda: failing_beside.s(3),
        "no canvas": lambda: no_canvas.s(),
    }
    return shapes[shape]()
