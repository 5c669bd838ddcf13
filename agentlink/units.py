"""How people write sizes, shares, durations and names, and how to show them again."""

from __future__ import annotations

import math
import re

_SIZE_FACTORS = {"": 1, "B": 1} | {
    name: base**power
    for power, letter in enumerate("KMGT", start=1)
    for name, base in ((letter, 1000), (letter + "B", 1000), (letter + "IB", 1024))
}
_DURATION_FACTORS_S = {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_NUMBER_AND_UNIT = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z%]*)")

# The most that programs in C, the broker among them, can count; and a thousand years.
_SIZE_MAX_BYTES = 2**63 - 1
_DURATION_MAX_S = 1000 * 366 * 86400
NAME_MAX = 100


def parse_size(value: object) -> int:
    """Bytes in `8GB` (powers of 1000), `512MiB` (powers of 1024) or a plain number.

    Raises:
        ValueError: what was given and what would be right.
    """
    number, unit = _split(value)
    size_bytes = number * _SIZE_FACTORS.get(unit.upper(), math.nan)
    if isinstance(value, float) or not 0 <= size_bytes <= _SIZE_MAX_BYTES:
        raise ValueError(f"want a size like 8GB or 512MiB, got {shown(value)}")
    return int(size_bytes)


def parse_share(value: object) -> float:
    """A fraction between 0 and 1 from `60%` or `0.6`.

    Raises:
        ValueError: what was given and what would be right.
    """
    number, unit = _split(value)
    fraction = number / 100 if unit == "%" else number
    if unit not in ("", "%") or not 0 <= fraction <= 1:
        raise ValueError(f"want a share like 60% or 0.6, got {shown(value)}")
    return float(fraction)


def parse_duration(value: object) -> float:
    """Seconds in `30s`, `250ms`, `5m`, `2h`, `7d` or a plain number.

    Raises:
        ValueError: what was given and what would be right.
    """
    number, unit = _split(value)
    duration_s = number * _DURATION_FACTORS_S.get(unit, math.nan)
    if not 0 <= duration_s <= _DURATION_MAX_S:
        raise ValueError(f"want a duration like 30s, 250ms, 5m, 2h or 7d, got {shown(value)}")
    return float(duration_s)


def checked_name(value: object) -> str | None:
    """The name itself, of an agent say; nothing for nothing.

    Raises:
        ValueError: what was given and what would be right.
    """
    if value is None:
        return None
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value.strip()) == len(value) <= NAME_MAX:
        raise ValueError(f"want a name of 1 to {NAME_MAX} printable characters, got {shown(value)}")
    return value


def _split(value: object) -> tuple[int | float, str]:
    """The number and the unit; not a number for what is neither a text of both nor a number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value, ""
    match = _NUMBER_AND_UNIT.fullmatch(value.strip()) if isinstance(value, str) else None
    return (float(match[1]), match[2]) if match else (math.nan, "")


def shown(value: object, most_characters: int = 100) -> str:
    """What was given, for a message: as Python writes it, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= most_characters else f"{text[: most_characters - 1]}…"


def format_size(size_bytes: float) -> str:
    """`1.5 GB`, with the largest unit that leaves at least one whole."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(size_bytes) >= factor:
            amount = size_bytes / factor
            return f"{amount:.3g} {unit}" if abs(amount) < 1000 else f"{amount:,.0f} {unit}"
    return f"{size_bytes:.0f} B"


def format_duration(duration_s: float) -> str:
    """`850 ms`, `3.2 s`, `4 m 05 s` or `2 h 07 m`."""
    if duration_s < 1:
        return f"{duration_s * 1000:.0f} ms"
    if duration_s < 60:
        return f"{duration_s:.1f} s"
    minutes, seconds = divmod(round(duration_s), 60)
    if minutes < 60:
        return f"{minutes} m {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} m"
