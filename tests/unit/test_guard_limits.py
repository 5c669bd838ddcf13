"""Limits are checked once, with the relations between them; a wrong one never reaches a running worker."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from agentlink.settings import Settings
from agentlink.settings_checks import RESOURCES
from resource_guard.limits import DEFAULT_MARKS, Limits, Marks
from resource_guard.observation import Level, Reading, Resource

LIMITS = Limits(memory_bytes=300_000_000)


@pytest.mark.parametrize(
    ("reading", "fraction"),
    [
        (Reading(value=150, limit=300), 0.5),
        (Reading(value=300, limit=300), 1.0),
        (Reading(value=1, limit=0), math.inf),
        (Reading(value=0, limit=0), 0.0),
        (Reading(value=1000, limit=500, floor=True), 0.5),
        (Reading(value=250, limit=500, floor=True), 2.0),
        (Reading(value=0, limit=500, floor=True), math.inf),
        (Reading(value=0, limit=0, floor=True), 0.0),
    ],
)
def test_a_fraction_of_one_is_the_limit_and_more_is_worse_for_floors_too(reading: Reading, fraction: float) -> None:
    """So the same marks and the same rule hold for what may not grow and for what may not shrink."""
    assert reading.fraction == fraction


@pytest.mark.parametrize(
    ("fraction", "level"),
    [
        (0.0, Level.OK),
        (0.79, Level.OK),
        (0.8, Level.THROTTLE),
        (0.9, Level.PAUSE),
        (0.95, Level.EVICT),
        (math.inf, Level.EVICT),
    ],
)
def test_a_level_begins_at_its_mark(fraction: float, level: Level) -> None:
    """At the mark itself, not above it."""
    assert Marks(resume=0.7, throttle=0.8, pause=0.9, evict=0.95).level_of(fraction) is level


def test_a_level_without_a_mark_does_not_exist() -> None:
    """However bad it gets: a full disk ends no task, and a busy CPU is no reason to start nothing."""
    assert DEFAULT_MARKS[Resource.DISK_FREE].level_of(math.inf) is Level.PAUSE
    assert DEFAULT_MARKS[Resource.CPU].level_of(0.99) is Level.THROTTLE


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"memory_bytes": 0}, "memory_bytes must be above 0, got 0"),
        ({"memory_bytes": math.nan}, "memory_bytes"),
        ({"memory_free_bytes": -1}, "memory_free_bytes"),
        ({"cpu_fraction": 0.0}, "cpu_fraction"),
        ({"cpu_fraction": 1.01}, "cpu_fraction"),
        ({"disk_free_bytes": -1}, "disk_free_bytes"),
        ({"disk_free_fraction": 1.0}, "disk_free_fraction"),
        ({"disk_quota_bytes": 0}, "disk_quota_bytes"),
        ({"processes": 0}, "processes"),
    ],
)
def test_limits_that_make_no_sense_are_refused_by_name(wrong: dict[str, Any], named: str) -> None:
    """The message names the field and the value."""
    with pytest.raises(ValueError, match=named):
        replace(LIMITS, **wrong)


@pytest.mark.parametrize(
    "marks",
    [
        Marks(resume=0.5),
        Marks(resume=0.5, evict=0.9),
        Marks(resume=0.9, pause=0.9),
        Marks(resume=0.0, pause=0.9),
        Marks(resume=0.5, pause=0.96, evict=0.95),
        Marks(resume=0.5, throttle=0.9, pause=0.8),
        Marks(resume=0.5, pause=math.nan),
        Marks(resume=0.5, pause=math.inf),
        Marks(resume=0.5, pause=0.9, readings_on=0),
        Marks(resume=0.5, pause=0.9, readings_off=0),
        Marks(resume=0.5, pause=0.9, rest_s=-0.1),
        Marks(resume=0.5, pause=0.9, rest_s=math.nan),
    ],
)
def test_marks_out_of_order_are_refused_with_their_resource(marks: Marks) -> None:
    with pytest.raises(ValueError, match="marks of memory: want "):
        Limits(memory_bytes=1, marks={Resource.MEMORY: marks})


class TestFromSettings:
    def test_every_setting_of_the_guard_arrives(self) -> None:
        """Under the words that users write."""
        limits = Limits.from_settings(
            Settings(
                memory="2GB",
                memory_free="1GB",
                memory_soft="70%",
                memory_resume="60%",
                memory_hard="80%",
                cpu="50%",
                cpu_soft="90%",
                cpu_resume="80%",
                cpu_hard="99%",
                disk_free="3GB",
                disk_free_share="5%",
                disk_quota="4GB",
                disk_quota_soft="85%",
                disk_quota_resume="75%",
                broker_memory_soft="80%",
                broker_memory_resume="70%",
                processes=50,
                processes_soft="60%",
                processes_resume="50%",
                processes_hard="90%",
                guard_off="memory_free, disk_free",
                guard_readings_on=2,
                guard_readings_off=5,
                guard_rest="2s",
            )
        )
        every = {"readings_on": 2, "readings_off": 5, "rest_s": 2.0}
        assert limits == Limits(
            memory_bytes=2_000_000_000,
            memory_free_bytes=1_000_000_000,
            cpu_fraction=0.5,
            disk_free_bytes=3_000_000_000,
            disk_free_fraction=0.05,
            disk_quota_bytes=4_000_000_000,
            processes=50,
            marks={
                Resource.MEMORY: Marks(pause=0.7, resume=0.6, evict=0.8, **every),
                Resource.CPU: Marks(throttle=0.9, resume=0.8, evict=0.99, **every),
                Resource.DISK_QUOTA: Marks(pause=0.85, resume=0.75, **every),
                Resource.BROKER_MEMORY: Marks(pause=0.8, resume=0.7, **every),
                Resource.PROCESSES: Marks(pause=0.6, resume=0.5, evict=0.9, **every),
            },
        )

    def test_the_settings_defaults_are_the_guards(self) -> None:
        """Both are written down once each, and must not drift apart."""
        settings = Settings()
        assert Limits.from_settings(settings) == Limits(
            memory_bytes=settings.memory_bytes, memory_free_bytes=settings.memory_free_bytes, cpu_fraction=0.6
        )

    def test_every_resource_can_be_switched_off(self) -> None:
        assert tuple(Resource) == RESOURCES
        assert Limits.from_settings(Settings(guard_off=",".join(RESOURCES))).marks == {}


class TestChangesOnARunningSystem:
    def test_make_new_limits(self) -> None:
        """Under the names of the resources; all else stays."""
        changed = LIMITS.with_changes({"memory": 6e9, "cpu": 0.5, "processes": 10})
        assert changed == replace(LIMITS, memory_bytes=6_000_000_000, cpu_fraction=0.5, processes=10)
        assert LIMITS.memory_bytes == 300_000_000

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"memroy": 1e9}, "memroy is not a limit that can be changed; those are memory, memory_free, cpu"),
            ({"broker_memory": 1e9}, "broker_memory is not a limit that can be changed"),
            ({"memory": 0.0}, "memory_bytes must be above 0"),
            ({"memory": math.nan}, "memory must be a number, got nan"),
            ({"memory": math.inf}, "memory must be a number, got inf"),
            ({"cpu": 60.0}, "cpu_fraction must be above 0 and at most 1, got 60.0"),
        ],
    )
    def test_are_checked_like_any_limits(self, changes: dict[str, float], problem: str) -> None:
        with pytest.raises(ValueError, match=problem):
            LIMITS.with_changes(changes)
