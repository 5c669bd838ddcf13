"""A chord whose counters get lost while it runs is found, and completed from its members' results, or its run fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentlink.broker.chords import CHORD_PREFIX, PENDING_KEY, ChordLost
from tests.integration import canvases
from tests.integration.canvases import shaped
from tests.integration.conftest import running_system
from tests.integration.system import System
from tests.waiting import wait_until
from workflows import RunState, WorkflowRun

#: Of Celery's keys of a chord, what their names end in.
COUNTERS = (".j", ".s", ".t", ".d", ".c")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("system")) as system:
        system.start_worker(imports=canvases.IMPORTS)
        yield system


def _delete(system: System, run: WorkflowRun, endings: tuple[str, ...]) -> None:
    """The counters of every chord of a run, and some there must be."""
    groups: list[Any] = system.client.zrange(PENDING_KEY, 0, -1)
    own = [group_id for group_id in groups if system.client.hget(CHORD_PREFIX + group_id, "run") == run.id]
    assert system.client.delete(*(f"celery-taskset-meta-{group_id}{ending}" for group_id in own for ending in endings))


def _start(shape: str, folder: Path, waits_at: int, begun: int) -> WorkflowRun:
    """A run whose task at one spot waits, and at another has begun."""
    (folder / f"{waits_at}.fate").write_text("wait")
    run = shaped.delay(shape, str(folder))
    waiting, other = folder / str(waits_at), folder / str(begun)
    wait_until(waiting.exists, what="the member that waits")
    wait_until(lambda: other.exists() and "end" in other.read_text(), what="the end of another")
    return run


#: Shapes, a member that waits and another that has ended when the counters get lost, the answer all the same.
CHORDS: dict[str, tuple[int, int, Any]] = {
    "chord": (2, 1, 3),
    "chord after a chord": (5, 4, 8),
    "chord in a chord's header": (2, 1, 6),
    "group as a chord's body": (2, 1, [3, 3]),
    "chain that ends in a group in a header": (2, 3, 9),
}


@pytest.mark.parametrize("endings", [COUNTERS, (".s",), (".j",), (".j", ".d")], ids=" ".join)
def test_each_is_completed(endings: tuple[str, ...], watched: System, tmp_path: Path) -> None:
    runs = {}
    for shape, (waits_at, begun, _) in CHORDS.items():
        folder = tmp_path / shape.replace(" ", "-")
        folder.mkdir()
        runs[shape] = run = _start(shape, folder, waits_at, begun)
        _delete(watched, run, endings)
        (folder / f"{waits_at}.go").touch()
    assert {shape: run.get(timeout=25) for shape, run in runs.items()} == {
        shape: answer for shape, (_, _, answer) in CHORDS.items()
    }
    ledgers = [ledger for ledger in tmp_path.glob("*/*") if not ledger.suffix]
    assert {ledger.read_text().count("begin") for ledger in ledgers} == {1}


def test_without_a_members_result_its_run_fails(watched: System, tmp_path: Path) -> None:
    run = _start("chord", tmp_path, 2, 1)
    _delete(watched, run, COUNTERS)
    done = (tmp_path / "1").read_text().split()[1]
    watched.client.delete(f"celery-task-meta-{done}")
    (tmp_path / "2.go").touch()
    with pytest.raises(ChordLost, match=f"the results of 1 of its members are not kept .{done}"):
        run.get(timeout=25)
    assert run.progress.state is RunState.FAILED


def test_of_chords_that_are_done_nothing_is_remembered(watched: System, tmp_path: Path) -> None:
    assert shaped.delay("chord in a chord's header", str(tmp_path)).get(timeout=20) == 6
    wait_until(lambda: not watched.client.exists(PENDING_KEY), what="the last word of who has sent the body")
    assert list(watched.client.scan_iter(f"{CHORD_PREFIX}*")) == []
