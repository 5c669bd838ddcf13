"""Writes the history: a row each second, and from those the rows of the coarser rings. One worker at a time does."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import redis
from redis.client import Pipeline

from agentlink.monitoring import history, rings
from agentlink.monitoring.rings import RINGS, Ring

#: How far the coarser rings are, by their steps; and what was counted when the last row was written.
_STATE_KEY = rings.PREFIX + "state"


class Writer:
    """What the worker that writes knows of what is written. One that takes over begins with a new one."""

    def __init__(self, client: redis.Redis) -> None:
        self._columns = rings.columns(client)
        state = {_text(name): _text(value) for name, value in client.hgetall(_STATE_KEY).items()}
        self._done_s = {ring: int(state.get(str(ring.step_s), 0)) for ring in RINGS[1:]}
        #: What was counted when the last row was written; empty: nothing is known of before.
        self.counted: dict[str, int] = json.loads(state.get("counted", "{}"))

    @property
    def columns(self) -> Sequence[str]:
        """The series there are."""
        return self._columns

    def write(self, client: redis.Redis, at_s: int, values: Mapping[str, float], counted: Mapping[str, int]) -> None:
        """Add the row of this second, and what is due of the coarser rings; `counted` is remembered with it."""
        for finer, ring in pairwise(RINGS):
            self._coarsen(client, finer, ring, at_s)
        with client.pipeline() as pipe:
            self._add_columns(pipe, values)
            rings.push(pipe, RINGS[0], at_s, self._columns, values)
            pipe.hset(_STATE_KEY, "counted", json.dumps(dict(counted)))
            pipe.expire(_STATE_KEY, rings.KEEP_COLUMNS_S)
            pipe.expire(rings.COLUMNS_KEY, rings.KEEP_COLUMNS_S)
            pipe.execute()
        self.counted = dict(counted)

    def _add_columns(self, pipe: Pipeline, values: Iterable[str]) -> None:
        new = [name for name in values if name not in self._columns][: rings.COLUMNS_MAX - len(self._columns)]
        if new:
            pipe.rpush(rings.COLUMNS_KEY, *new)
            self._columns = [*self._columns, *new]

    def _coarsen(self, client: redis.Redis, finer: Ring, ring: Ring, at_s: int) -> None:
        """Make rows of those intervals that are over, and of which there are none yet."""
        until_s = at_s - at_s % ring.step_s
        done_s = self._done_s[ring]
        if done_s == until_s:
            return
        # A clock that was set back goes over the same time again. What was missed meanwhile is made up for.
        since_s = max(done_s, at_s - finer.span_s) if done_s < until_s else until_s - ring.step_s
        intervals: dict[int, list[Sequence[float]]] = defaultdict(list)
        for row_s, row in rings.rows(client, finer, since_s - since_s % ring.step_s, until_s):
            intervals[row_s - row_s % ring.step_s].append(row)
        with client.pipeline() as pipe:
            for start_s, rows in sorted(intervals.items()):
                rings.push(pipe, ring, start_s, self._columns, _one_of(rows, self._columns))
            pipe.hset(_STATE_KEY, str(ring.step_s), until_s)
            pipe.execute()
        self._done_s[ring] = until_s


def _one_of(rows: Sequence[Sequence[float]], columns: Sequence[str]) -> dict[str, float]:
    values = {}
    for number, name in enumerate(columns):
        known = [row[number] for row in rows if number < len(row) and not math.isnan(row[number])]
        if known:
            values[name] = history.together(name)(known)
    return values


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
