"""How readings are kept in the broker: rows of numbers, in lists of a minute, ten minutes or six hours each.

There are three rings, from one row a second for an hour to one in five minutes for a month. A row is a time (whole
seconds since 1970) and a number for each column, of four bytes each; what a column is stands in one list of names,
which only grows. A list has a time to live, so a ring has no end to be moved; a row that was written later counts for
more, so nothing has to be undone when a clock was set back.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import redis
from redis.client import NEVER_DECODE, Pipeline

PREFIX = "agentlink:history:"
#: The names of the columns, in their order.
COLUMNS_KEY = PREFIX + "columns"
#: All three rings full, a column takes 85 kB: so the whole takes 17 MB at most.
COLUMNS_MAX = 200

_TIME = struct.Struct("<I")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ring:
    """One row each `step_s`, kept for `span_s`, in lists of `list_s` each."""

    step_s: int
    span_s: int
    list_s: int

    def key(self, at_s: int) -> str:
        """The list that a row of this time is in."""
        return f"{PREFIX}{self.step_s}:{at_s - at_s % self.list_s}"


SECONDS = Ring(step_s=1, span_s=3600, list_s=60)
TENS = Ring(step_s=10, span_s=86400, list_s=600)
FIVE_MINUTES = Ring(step_s=300, span_s=30 * 86400, list_s=6 * 3600)
RINGS = (SECONDS, TENS, FIVE_MINUTES)
#: The names of columns outlive the rows.
KEEP_COLUMNS_S = FIVE_MINUTES.span_s + 2 * FIVE_MINUTES.list_s


def push(pipe: Pipeline, ring: Ring, at_s: int, columns: Sequence[str], values: Mapping[str, float]) -> None:
    """Add a row; what it does not say is not known."""
    row = _TIME.pack(at_s) + array("f", (values.get(name, math.nan) for name in columns)).tobytes()
    key = ring.key(at_s)
    pipe.rpush(key, row)
    pipe.expire(key, ring.span_s + 2 * ring.list_s)


def rows(client: redis.Redis, ring: Ring, since_s: int, until_s: int) -> Iterator[tuple[int, Sequence[float]]]:
    """The rows from one time to before another, in the order in which they were written within a list."""
    with client.pipeline(transaction=False) as pipe:
        for start_s in range(since_s - since_s % ring.list_s, until_s, ring.list_s):
            # A client that makes texts of answers leaves these as they are.
            pipe.execute_command("LRANGE", ring.key(start_s), 0, -1, **{NEVER_DECODE: True})  # type: ignore[no-untyped-call]
        lists = pipe.execute()
    for row in (row for part in lists for row in part):
        (at_s,) = _TIME.unpack_from(row)
        if since_s <= at_s < until_s:
            yield at_s, array("f", row[_TIME.size :])


def columns(client: redis.Redis) -> list[str]:
    """The names of the columns."""
    names: list[bytes | str] = client.lrange(COLUMNS_KEY, 0, -1)
    return [name.decode() if isinstance(name, bytes) else name for name in names]
