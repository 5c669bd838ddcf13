"""How people write sizes, shares and durations, and how to show them again."""

from __future__ import annotations

import re

_SIZE_FACTORS = {"": 1, "B": 1} | {
    name: base**power
    for power, letter in enumerate("KMGT", start=1)
    for name, base in ((letter, 1000), (letter + "B", 1000), (letter + "IB", 1024))
}
_DURATION_FACTORS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER_AND_UNIT = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z%]*)\s*")


def _split(text: str) -> tuple[float, str] | None:
    match = _NUMBER_AND_UNIT.fullmatch(text)
    return (float(match[1]), match[2]) if match else None


def parse_size(value: object) -> int:
    """Bytes in `8GB` (powers of 1000), `512MiB` (powers of 1024) or a plain number.

    Raises:
        ValueError: what was given and what would be right.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    parts = _split(value) if isinstance(value, str) else None
    if parts is None or parts[1].upper() not in _SIZE_FACTORS:
        raise ValueError(f"want a size like 8GB or 512MiB, got {value!r}")
    return int(parts[0] * _SIZE_FACTORS[parts[1].upper()])


def parse_share(value: object) -> float:
    """A fraction between 0 and 1 from `60%` or `0.6`.

    Raises:
        ValueError: what was given and what would be right.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number, unit = float(value), ""
    else:
        number, unit = (_split(value) if isinstance(value, str) else None) or (-1.0, "")
    fraction = number / 100 if unit == "%" else number
    if unit not in ("", "%") or not 0 <= fraction <= 1:
        raise ValueError(f"want a share like 60% or 0.6, got {value!r}")
    return fraction


def parse_duration(value: object) -> float:
    """Seconds in `30s`, `250ms`, `5m`, `2h`, `7d` or a plain number.

    Raises:
        ValueError: what was given and what would be right.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
        return float(value)
    parts = _split(value) if isinstance(value, str) else None
    if parts is None or (parts[1] or "s") not in _DURATION_FACTORS_S:
        raise ValueError(f"want a duration like 30s, 250ms, 5m, 2h or 7d, got {value!r}")
    return parts[0] * _DURATION_FACTORS_S[parts[1] or "s"]


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
