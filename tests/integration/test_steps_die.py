"""A process that is killed at each point of a step's life: the run goes on, and what was done is not done again."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.integration import steered
from tests.integration.system import System
from tests.waiting import wait_until

PAGE = Path(__file__).parents[2] / "docs" / "how_it_works.md"
#: Where the step dies, which one, and how often its body runs then.
POINTS = [
    ("taken by a worker", "one", 1),
    ("handed to a process", "one", 1),
    ("claimed", "one", 1),
    ("its body has ended", "one", 2),
    ("before it sends the next", "one", 2),
    ("before its result is stored", "one", 2),
    ("its result is stored", "one", 1),
    ("before it counts in its chord", "two", 1),
    ("it has counted in its chord", "two", 1),
    ("before its result is stored", "three", 2),
    ("its result is stored", "three", 1),
    ("before it is acknowledged", "one", 1),
    ("it is acknowledged", "one", 1),
]
#: Where the worker's main process dies.
OF_THE_WORKER = {"taken by a worker", "before it is acknowledged", "it is acknowledged"}


@pytest.mark.parametrize(("point", "step", "times"), POINTS, ids=lambda value: str(value).replace(" ", "_"))
def test_the_run_goes_on(
    point: str, step: str, times: int, system: System, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = system.folder / "now"
    for name, value in {"NOW": str(now), "AT": point, "IN": step}.items():
        monkeypatch.setenv(f"TEST_DIE_{name}", value)
    imports = "tests.integration.sample,tests.integration.steered"
    system.start_worker(imports=f"{imports},tests.integration.dying", lease="1s")
    now.touch()
    run = steered.three_kinds.delay(str(path))
    wait_until(lambda: not now.exists(), what="the death")
    system.start_worker(imports=imports, lease="1s")  # where the whole worker has died
    result = run.get(timeout=30)
    assert result == "12+beside3"
    ran = Counter(path.read_text().splitlines())
    assert ran.keys() == {"one", "two", "beside", "joined", "three"}
    assert ran[step] == times
    # With the whole worker, what its other process was at has died too.
    assert max(ran[other] for other in ran if other != step) <= (2 if point in OF_THE_WORKER else 1)
    assert {s.state for s in run.steps()} == {"SUCCEEDED"}


def test_each_point_is_documented() -> None:
    table = PAGE.read_text().partition("| a step's process or worker is killed |")[2].partition("\n\n")[0]
    rows = {row.strip() for row in re.findall(r"^\| ([^|]+) \| [^|]+ \|$", table, re.MULTILINE)}
    assert rows == {point for point, _, _ in POINTS}
