"""What cron expressions mean, and when they come next."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.cron import WORDS, machine_zone, next_time, parse, zone_of

BERLIN = "Europe/Berlin"


def _times(expression: str, zone: str, after: str, count: int = 3) -> list[str]:
    """The next times on the clock there, with their offsets, but without seconds."""
    at = datetime.fromisoformat(after).replace(tzinfo=ZoneInfo(zone)).timestamp()
    found = []
    for _ in range(count):
        at = next_time(parse(expression), ZoneInfo(zone), at)
        found.append(datetime.fromtimestamp(at, ZoneInfo(zone)).strftime("%m-%d %H:%M%z"))
    return found


class TestNextTime:
    @pytest.mark.parametrize(
        ("expression", "after", "comes"),
        [
            ("0 7 * * MON", "2026-11-26T12:00", ["11-30 07:00", "12-07 07:00"]),
            ("*/20 * * * *", "2026-11-26T23:39:59", ["11-26 23:40", "11-27 00:00"]),
            ("0 9-17/4 * * mon-fri", "2026-11-27T13:00", ["11-27 17:00", "11-30 09:00"]),
            ("5 4 1 jan,JUL *", "2026-11-26T12:00", ["01-01 04:05", "07-01 04:05"]),
            ("0 0 31 * *", "2026-11-26T12:00", ["12-31 00:00", "01-31 00:00", "03-31 00:00"]),
            ("@daily", "2026-11-26T00:00", ["11-27 00:00", "11-28 00:00"]),
            ("@Hourly", "2026-11-26T00:00", ["11-26 01:00", "11-26 02:00"]),
            ("59 23 31 12 *", "2026-12-31T23:59", ["12-31 23:59"]),
            # 7 is Sunday too, also at the end of a range; a range may go round the end of the week.
            ("0 0 * * 7", "2026-11-26T12:00", ["11-29 00:00", "12-06 00:00"]),
            ("0 0 * * 6-7", "2026-11-26T12:00", ["11-28 00:00", "11-29 00:00", "12-05 00:00"]),
            ("0 0 * * fri-mon", "2026-11-26T12:00", ["11-27 00:00", "11-28 00:00", "11-29 00:00", "11-30 00:00"]),
            ("0 0 * * */3", "2026-11-26T12:00", ["11-28 00:00", "11-29 00:00", "12-02 00:00"]),
            # Both days restricted: one of them is enough. A star, also one with a step, restricts as well as the other.
            ("0 0 13 * FRI", "2026-12-06T00:00", ["12-11 00:00", "12-13 00:00", "12-18 00:00"]),
            ("0 0 */2 * MON", "2026-12-01T00:00", ["12-07 00:00", "12-21 00:00"]),
        ],
    )
    def test_fields(self, expression: str, after: str, comes: list[str]) -> None:
        assert _times(expression, "UTC", after, len(comes)) == [f"{at}+0000" for at in comes]

    def test_times_are_those_of_the_zone(self) -> None:
        assert _times("0 7 * * *", BERLIN, "2026-03-27T12:00") == [
            "03-28 07:00+0100", "03-29 07:00+0200", "03-30 07:00+0200",
        ]  # fmt: skip
        assert _times("0 7 * * *", "Asia/Kathmandu", "2026-03-27T12:00", 1) == ["03-28 07:00+0545"]

    def test_a_time_that_spring_skips_comes_once_and_later_by_as_much(self) -> None:
        assert _times("30 2 * * *", BERLIN, "2026-03-28T12:00", 2) == ["03-29 03:30+0200", "03-30 02:30+0200"]
        assert _times("0,30 2,3 * * *", BERLIN, "2026-03-29T00:00") == [
            "03-29 03:00+0200", "03-29 03:30+0200", "03-30 02:00+0200",
        ]  # fmt: skip
        assert _times("0 * * * *", BERLIN, "2026-03-29T01:00", 2) == ["03-29 03:00+0200", "03-29 04:00+0200"]
        assert _times("@daily", "America/Havana", "2026-03-07T12:00", 2) == ["03-08 01:00-0400", "03-09 00:00-0400"]

    def test_a_time_that_autumn_repeats_comes_once(self) -> None:
        assert _times("30 2 * * *", BERLIN, "2026-10-24T12:00", 2) == ["10-25 02:30+0200", "10-26 02:30+0100"]
        assert _times("*/30 2 * * *", BERLIN, "2026-10-25T00:00") == [
            "10-25 02:00+0200", "10-25 02:30+0200", "10-26 02:00+0100",
        ]  # fmt: skip

    def test_each_hour_means_each_hour_that_passes(self) -> None:
        assert _times("30 * * * *", BERLIN, "2026-10-25T01:00", 4) == [
            "10-25 01:30+0200", "10-25 02:30+0200", "10-25 02:30+0100", "10-25 03:30+0100",
        ]  # fmt: skip

    def test_leap_days(self) -> None:
        leap_day = parse("0 12 29 feb *")
        years = []
        at = datetime(2088, 3, 1, tzinfo=UTC).timestamp()
        for _ in range(4):
            at = next_time(leap_day, ZoneInfo("UTC"), at)
            years.append(datetime.fromtimestamp(at, UTC).year)
        assert years == [2092, 2096, 2104, 2108]

    def test_the_rarest_date_is_found_quickly(self) -> None:
        """A leap day on an odd day of the week, over a century without one."""
        started = time.perf_counter()
        found = next_time(parse("0 0 29 2 */6"), ZoneInfo(BERLIN), datetime(2088, 3, 1, tzinfo=UTC).timestamp())
        assert time.perf_counter() - started < 0.5
        assert datetime.fromtimestamp(found, ZoneInfo(BERLIN)).strftime("%m-%d %w") in ("02-29 0", "02-29 6")

    @settings(max_examples=200, deadline=None)
    @given(
        at=st.integers(0, 4_000_000_000),
        zone=st.sampled_from(["UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "Pacific/Apia"]),
        expression=st.sampled_from(["*/7 * * * *", "30 2 * * *", "0 */5 * * 1-5", "15 0,23 1,15 * *", "@weekly"]),
    )
    def test_it_is_later_and_right_and_nothing_lies_between(self, at: int, zone: str, expression: str) -> None:
        cron, there = parse(expression), ZoneInfo(zone)
        found = next_time(cron, there, at)
        assert found > at
        assert next_time(cron, there, found - 1) == found
        # The same from anywhere between: no time is jumped over.
        assert next_time(cron, there, (at + found) // 2) == found or (at + found) // 2 == found
        clock = datetime.fromtimestamp(found, there)
        skipped = clock.utcoffset() != (clock - timedelta(hours=25)).replace(tzinfo=there).utcoffset()
        assert (clock.minute in cron.minutes and clock.hour in cron.hours) or skipped


class TestRefused:
    @pytest.mark.parametrize(
        ("expression", "problem"),
        [
            ("", "want five fields"),
            ("0 7 * *", "want five fields (minute, hour, day of the month, month, day of the week) like '0 7 * * MON'"),
            ("0 0 7 * * MON", "or one of @yearly"),
            ("@dayly", "@daily, @midnight, @hourly, got '@dayly'"),
            ("60 * * * *", "minute: want numbers from 0 to 59, like *, 1,2, 1-5, */2 or 1-5/2, got '60'"),
            ("0 24 * * *", "hour: want numbers from 0 to 23"),
            ("0 0 0 * *", "day of the month: want numbers from 1 to 31"),
            ("0 0 L * *", "day of the month: "),
            ("0 0 * monkey *", "month: want numbers from 1 to 12 or JAN-DEC"),
            ("0 0 * * 8", "day of the week: want numbers from 0 to 7 or SUN-SAT"),
            ("0 0 * * FRI#1", "got 'FRI#1'"),
            ("MON * * * *", "minute: "),
            ("1,,2 * * * *", "got ''"),
            ("1-5-7 * * * *", "got '1-5-7'"),
            ("*/0 * * * *", "got '*/0'"),
            ("*/5/2 * * * *", "got '*/5/2'"),
            ("5/10 * * * *", "got '5/10'"),
            ("-5 * * * *", "got '-5'"),
            ("٣ * * * *", "minute: "),
            ("0 0 30 2 *", "'0 0 30 2 *' never comes"),
            ("0 0 31 4,6,9,11 *", "never comes"),
        ],
    )
    def test_it_says_what_and_where_and_what_instead(self, expression: str, problem: str) -> None:
        with pytest.raises(ValueError, match="want") as refused:
            parse(expression)
        assert problem in str(refused.value)

    @settings(max_examples=300, deadline=None)
    @given(st.text("0123456789*/,-@ MONFEBmonfeb?#L", max_size=20))
    def test_whatever_is_given_it_is_either_read_or_refused(self, expression: str) -> None:
        try:
            cron = parse(expression)
        except ValueError:
            return
        assert next_time(cron, ZoneInfo("UTC"), 0) > 0

    @pytest.mark.parametrize("name", ["Mars/Base", "", "../UTC", "/etc/localtime", "Europe", "x\0"])
    def test_unknown_zones(self, name: str) -> None:
        with pytest.raises(ValueError, match="want a time zone like 'Europe/Berlin' or 'UTC', got"):
            zone_of(name)


def test_words_are_expressions_too() -> None:
    for word, expression in WORDS.items():
        assert parse(word) == parse(expression)


def test_the_machines_zone_is_one_that_others_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    assert machine_zone() == "America/New_York"
    monkeypatch.setenv("TZ", "")
    assert zone_of(machine_zone()).key == machine_zone()
