"""How people write sizes, shares and durations."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from agentlink.units import format_duration, format_size, parse_duration, parse_share, parse_size


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [("8GB", 8_000_000_000), ("1.5 GB", 1_500_000_000), ("512MiB", 512 * 2**20), ("64k", 64_000), ("0", 0), (17, 17)],
)
def test_sizes(written: object, size_bytes: int) -> None:
    assert parse_size(written) == size_bytes


@pytest.mark.parametrize("written", ["", "GB", "8 GBs", "-1GB", "8,5GB", None, True, 1.5, -1, "1e9", "60%", "0 GBs"])
def test_what_is_no_size_is_refused_with_an_example(written: object) -> None:
    with pytest.raises(ValueError, match="want a size like 8GB or 512MiB, got"):
        parse_size(written)


@pytest.mark.parametrize(("written", "fraction"), [("60%", 0.6), ("0.6", 0.6), (1, 1.0), ("100 %", 1.0), (0, 0.0)])
def test_shares(written: object, fraction: float) -> None:
    assert parse_share(written) == pytest.approx(fraction)


@pytest.mark.parametrize("written", ["", "60", "101%", "-1%", "0.6s", None, True, 1.01, 10**400, math.nan])
def test_what_is_no_share_is_refused_with_an_example(written: object) -> None:
    with pytest.raises(ValueError, match=r"want a share like 60% or 0\.6, got"):
        parse_share(written)


@pytest.mark.parametrize(
    ("written", "duration_s"),
    [("30s", 30), ("250ms", 0.25), ("5m", 300), ("2h", 7200), ("7d", 604800), (3, 3), ("3", 3)],
)
def test_durations(written: object, duration_s: float) -> None:
    assert parse_duration(written) == duration_s


@pytest.mark.parametrize("written", ["", "s", "3 weeks", "-3s", None, False, -1, "1:30"])
def test_what_is_no_duration_is_refused_with_an_example(written: object) -> None:
    with pytest.raises(ValueError, match="want a duration like 30s"):
        parse_duration(written)


@pytest.mark.parametrize("parse", [parse_size, parse_share, parse_duration])
@pytest.mark.parametrize(
    "written", [math.inf, -math.inf, math.nan, 1e400, 10**400, -(10**400), "9" * 400, f"{'9' * 400}TB", "inf", "nan"]
)
def test_numbers_that_no_computer_can_count_are_refused(parse: Callable[[object], float], written: object) -> None:
    with pytest.raises(ValueError, match="want a "):
        parse(written)


def test_what_is_refused_is_shown_in_a_line() -> None:
    with pytest.raises(ValueError) as raised:
        parse_duration("soon " * 100_000)
    assert str(raised.value).endswith("soon soo…")
    assert len(str(raised.value)) < 200


@pytest.mark.timeout(10)
def test_a_text_of_blanks_takes_no_time() -> None:
    with pytest.raises(ValueError):
        parse_size("1" + " " * 1_000_000 + "GB!")


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_550_000, "1.55 MB"), (8e9, "8 GB"), (5e15, "5,000 TB")],
)
def test_sizes_are_shown_in_the_largest_unit_with_a_whole(size_bytes: float, shown: str) -> None:
    assert format_size(size_bytes) == shown


@pytest.mark.parametrize(
    ("duration_s", "shown"),
    [(0.25, "250 ms"), (3.21, "3.2 s"), (245, "4 m 05 s"), (3600, "1 h 00 m"), (7620, "2 h 07 m")],
)
def test_durations_are_shown_in_two_units_at_most(duration_s: float, shown: str) -> None:
    assert format_duration(duration_s) == shown
