"""What a schedule is, and how it is changed, on a made clock."""

from __future__ import annotations

from typing import Any

import fakeredis
import pytest

from tests.integration import declaring, sample
from tests.unit.schedules.made import DAY_S, HOUR_S, MINUTE_S, MONDAY, WORKFLOW, Broker, Clock, next_s, put
from workflows import ScheduleRefused, ScheduleUnknown, firing, schedules, workflow
from workflows.firing import Firer
from workflows.schedule_definition import define


class TestDefine:
    @pytest.mark.parametrize(
        ("words", "problem"),
        [
            ({}, "want either a cron expression like '0 7 * * MON' or an interval like 15m"),
            ({"schedule": "@daily", "every": "1h"}, "want either a cron expression"),
            ({"schedule": "61 * * * *"}, "minute: want numbers from 0 to 59"),
            ({"schedule": "@daily", "timezone": "Mars"}, "want a time zone like 'Europe/Berlin' or 'UTC', got 'Mars'"),
            ({"every": "1h", "timezone": "UTC"}, "a time zone goes with a cron expression"),
            ({"every": "often"}, "want a duration like 30s"),
            ({"every": "0.5s"}, "want an interval of 1s or more, got '0.5s'"),
            ({"every": "1h", "missed": "all"}, "want missed as one of skip, once, got 'all'"),
            ({"every": "1h", "overlap": "yes"}, "want overlap as one of skip, wait, allow, got 'yes'"),
            ({"every": "1h", "args": [object()]}, "not JSON serializable"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, words: dict[str, Any], problem: str) -> None:
        with pytest.raises(ScheduleRefused) as refused:
            define("s", WORKFLOW, words.pop("args", ()), **words)
        assert str(refused.value).startswith("schedule s: ")
        assert problem in str(refused.value)

    def test_a_workflow_that_declares_nonsense_can_not_be_defined(self) -> None:
        with pytest.raises(ScheduleRefused, match="hour: want numbers from 0 to 23"):
            workflow(schedule="0 25 * * *")(lambda: 1)

    def test_a_workflow_that_needs_arguments_can_not_declare_when_it_runs(self) -> None:
        with pytest.raises(ScheduleRefused, match=r"called without arguments; missing a required argument: 'n'"):
            workflow(every="1h")(lambda n: n)

    def test_a_workflow_completes_the_arguments_of_what_it_declares(self) -> None:
        expected = define("s", MONDAY, [8], schedule="0 7 * * MON", timezone="Europe/Berlin", missed="once")
        assert firing.declared_by(declaring.each_monday) == expected
        assert firing.declared_by(sample.sums) is None


class TestChanges:
    def test_a_name_has_to_be_one(self, client: fakeredis.FakeRedis) -> None:
        with pytest.raises(ScheduleRefused, match="want a name of 1 to 100 printable characters"):
            put(client, "a\nb")

    def test_a_second_of_the_same_name_is_refused_or_replaces_the_first(self, client: fakeredis.FakeRedis) -> None:
        put(client)
        with pytest.raises(ScheduleRefused, match="there is one already"):
            put(client, every="2m")
        schedules.put(client, "s", define("s", WORKFLOW, every="2m"), replace=True)
        assert next_s(client) == 2 * MINUTE_S

    def test_pause_and_resume(self, client: fakeredis.FakeRedis, broker: Broker, clock: Clock) -> None:
        put(client, every="1h", missed="once")
        schedules.pause(client, "s")
        assert (schedules.read(client, "s").paused, next_s(client)) == (True, None)
        clock.now_s += DAY_S
        Firer(lambda: client).look()
        schedules.resume(client, "s")
        schedules.resume(client, "s")
        assert next_s(client) == DAY_S + HOUR_S
        Firer(lambda: client).look()
        assert broker.fired == []

    def test_added_paused_and_replaced_it_stays_paused(self, client: fakeredis.FakeRedis) -> None:
        schedules.put(client, "s", define("s", WORKFLOW, every="1h"), paused=True)
        schedules.put(client, "s", define("s", WORKFLOW, every="2h"), replace=True)
        assert schedules.read(client, "s").paused

    def test_what_is_not_there_is_named_with_what_is(self, client: fakeredis.FakeRedis) -> None:
        put(client, "b")
        put(client, "a")
        for change in (schedules.pause, schedules.resume, schedules.remove, schedules.read):
            with pytest.raises(ScheduleUnknown, match="no schedule is called 'c'; known are: a, b"):
                change(client, "c")

    def test_what_is_removed_leaves_nothing(self, client: fakeredis.FakeRedis) -> None:
        put(client)
        schedules.remove(client, "s")
        assert client.keys() == []


@pytest.mark.usefixtures("clock")
class TestDeclared:
    FIRST = define("s", WORKFLOW, every="1h")
    SECOND = define("s", WORKFLOW, every="2h")
    MINE = define("s", WORKFLOW, every="3h")

    def test_it_follows_the_code(self, client: fakeredis.FakeRedis, clock: Clock) -> None:
        schedules.declare(client, "s", self.FIRST)
        clock.now_s += MINUTE_S
        schedules.declare(client, "s", self.FIRST)
        assert next_s(client) == HOUR_S
        schedules.declare(client, "s", self.SECOND)
        assert next_s(client) == 2 * HOUR_S + MINUTE_S
        schedules.undeclare(client, "s")
        assert client.keys() == []

    def test_what_a_person_has_changed_stays(self, client: fakeredis.FakeRedis) -> None:
        schedules.declare(client, "s", self.FIRST)
        schedules.put(client, "s", self.MINE, replace=True)
        schedules.declare(client, "s", self.SECOND)
        found = schedules.read(client, "s")
        assert (found.definition, found.declared, found.changed) == (self.MINE, True, True)
        schedules.undeclare(client, "s")
        found = schedules.read(client, "s")
        assert (found.definition, found.declared, found.changed) == (self.MINE, False, False)

    def test_what_a_person_has_paused_stays_paused(self, client: fakeredis.FakeRedis) -> None:
        schedules.declare(client, "s", self.FIRST)
        schedules.pause(client, "s")
        schedules.declare(client, "s", self.SECOND)
        found = schedules.read(client, "s")
        assert (found.definition, found.paused, found.next_at) == (self.SECOND, True, None)

    def test_a_persons_own_schedule_is_not_the_codes_to_remove(self, client: fakeredis.FakeRedis) -> None:
        schedules.put(client, "s", self.MINE)
        schedules.undeclare(client, "s")
        assert schedules.read(client, "s").definition == self.MINE
