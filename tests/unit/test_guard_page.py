"""How a guard's own words become what a person sees: units, what is tight, who runs, what was ordered."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from agentlink import guard_page

NOW = 1_000_000.0


def reading(value: float, limit: float, **more: Any) -> dict[str, Any]:
    floor = more.get("floor", False)
    fraction = limit / value if floor else value / limit
    return {
        "level": "ok", "value": value, "limit": limit, "floor": False, "unit": "", "fraction": fraction, "where": "",
        "reason": "",
    } | more  # fmt: skip


def started(**more: Any) -> dict[str, Any]:
    return {
        "id": "8d7e36aa-0000-4b52-87eb-33add5271ebc", "name": "tests.sample.hold", "pid": 4711, "cap_bytes": 500e6,
        "use_bytes": 250e6, "reserved_bytes": 200e6, "peak_bytes": 260e6, "declared": True, "runs": 0, "evictions": 0,
    } | more  # fmt: skip


def status(**more: Any) -> dict[str, Any]:
    tasks = {
        "running": 1, "waiting": 2, "slots": 3, "slots_most": 4, "reserved_bytes": 200e6, "room_bytes": 7e9,
        "capacity_bytes": 7e9, "counts": {}, "replaced": 0, "cpu_held_by": "cgroup quota", "started": [started()],
    }  # fmt: skip
    return {
        "state": "ok", "reason": "", "since": NOW - 60, "dry_run": False, "stalled": {}, "counts": {}, "tasks": tasks,
        "resources": {"cpu": reading(0.55, 0.6), "memory": reading(1.2e9, 8e9)}, "latest_s": 0.0,
        "ordered": {"paused": False, "reason": "", "until": None, "limits": {}},
    } | more  # fmt: skip


def shown(*guards: dict[str, Any] | None, width: int = 100) -> str:
    page = io.StringIO()
    named = {f"worker{number}@host": guard for number, guard in enumerate(guards)}
    Console(file=page, width=width).print(guard_page.page(named, NOW))
    return page.getvalue()


@pytest.mark.parametrize(
    ("resource", "seen", "text"),
    [
        ("memory", reading(412e6, 8e9), "412 MB of 8 GB"),
        ("memory_free", reading(12e9, 2e9, floor=True), "12 GB left, 2 GB must stay"),
        ("cpu", reading(0.583, 0.6), "58.3% of 60%"),
        ("processes", reading(14, 1000), "14 of 1,000"),
        ("processes", reading(14, 1000, unit="threads"), "14 threads of 1,000"),
        ("disk_free", reading(16.3e6, 839e3, floor=True, unit="inodes"),
         "16.3 million inodes left, 839 thousand must stay"),
    ],
)  # fmt: skip
def test_a_reading_is_told_in_the_units_that_people_use(resource: str, seen: dict[str, Any], text: str) -> None:
    assert guard_page.use(resource, seen) == text


def test_a_page_tells_what_is_used_of_what_and_who_uses_it() -> None:
    page = shown(status())
    lines = page.splitlines()
    assert lines[0].rstrip() == "worker0@host  takes tasks"
    assert [line.split()[0] for line in lines[2:4]] == ["memory", "cpu"], "in the order of the settings"
    assert "1 running, 2 waiting for room, 3 (of 4) at a time" in page
    assert "7 GB for all tasks together, 200 MB of it reserved" in page
    assert lines[-1].split() == ["hold", "8d7e36aa", "4711", "250", "MB", "200", "MB", "declared", "500", "MB"]


@pytest.mark.parametrize(
    ("declared", "runs", "by"), [(True, 0, "declared"), (False, 7, "learned"), (False, 0, "guess")]
)
def test_a_reservation_says_what_it_goes_by(declared: bool, runs: int, by: str) -> None:
    guard = status()
    guard["tasks"]["started"] = [started(declared=declared, runs=runs, evictions=2, cap_bytes=None, pid=None)]
    line = shown(guard).splitlines()[-1]
    assert by in line
    assert line.split()[-2:] == ["none", "2"]


def test_a_pause_says_since_when_and_why() -> None:
    why = "memory of this worker's processes 7.4 GB is over the soft limit 7.2 GB (90% of 8 GB)"
    memory = reading(7.4e9, 8e9, level="pause", reason=why)
    cpu = reading(0.7, 0.6, level="evict", reason="CPU is over the hard limit")
    page = shown(status(state="paused", reason=why, resources={"memory": memory, "cpu": cpu}), width=200)
    assert "takes no new tasks since" in page
    assert page.count(why) == 1
    assert "(1 m 00 s)" in page
    assert "CPU is over the hard limit" in page
    assert "117%" in page


def test_what_a_person_has_ordered_is_told_with_its_end() -> None:
    limits = {"memory": 6e9, "cpu": 0.5, "processes": 200}
    ordered = {"paused": True, "reason": "for [red]lunch[/]\n🍜", "until": None, "limits": limits}
    assert guard_page.orders(ordered, NOW) == [
        "paused until `agentlink guard resume`: for [red]lunch[/] 🍜",
        "memory 6 GB, cpu 50%, processes 200 until `agentlink guard limits reset`",
    ]
    assert guard_page.orders(ordered | {"until": NOW - 1, "limits": {}}, NOW) == []
    assert "for [red]lunch[/] 🍜" in shown(status(ordered=ordered))


def test_what_has_happened_is_counted_in_words() -> None:
    guard = status(counts={"pauses": 2, "paused_ms": 65_000, "memory_pause": 2, "alarms": 1}, dry_run=True)
    guard["tasks"] |= {"counts": {"evicted": 1, "failed": 3}, "replaced": 2}
    page = shown(guard, width=200)
    so_far = "2 pauses (1 m 05 s), 1 alarm, 1 eviction, 3 tasks failed for their memory, 2 idle processes replaced"
    assert so_far in page
    assert "dry run" in page
    assert "no pause, nothing ended" in shown(status())


def test_a_worker_without_a_guard_or_whose_guard_has_not_looked_yet_is_a_line_on_the_page() -> None:
    page = shown(None, status(tasks={}, resources={}))
    assert "worker0@host  no guard: it takes what comes" in page
    assert "worker1@host  takes tasks" in page


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_narrow_terminal_is_never_overrun(width: int) -> None:
    where = "/home/somebody/.local/share/agentlink"
    readings = {"disk_free": reading(16.3e6, 839e3, floor=True, unit="inodes", where=where)}
    page = shown(status(resources=readings), width=width)
    assert max(map(len, page.splitlines())) <= width
    if width == 80:
        assert "disk_free" in page
        assert "16.3 million inodes left" in page


def test_nothing_left_above_a_floor_is_shown_too() -> None:
    """What is left may be nothing; then there is no share of the limit to tell."""
    empty = reading(1, 2e9, floor=True) | {"value": 0, "fraction": 1e9, "level": "pause"}
    assert "0 B left, 2 GB must stay" in shown(status(resources={"disk_free": empty}))


def test_a_summary_tells_memory_cpu_and_whatever_is_tight() -> None:
    resources = status()["resources"] | {
        "processes": reading(900, 1000, level="pause"),
        "disk_quota": reading(1e9, 20e9),
    }
    lines = [line.plain for line in guard_page.summary(status(resources=resources, dry_run=True), NOW)]
    assert lines == ["takes tasks", "dry run; memory 1.2 GB of 8 GB; cpu 55% of 60%; processes 900 of 1,000"]
    assert [line.plain for line in guard_page.summary(None, NOW)] == ["no guard: it takes what comes"]
