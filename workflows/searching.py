"""Runs found among all that are listed: by state, workflow, tag, or a text in what is known of them.

The broker looks, a stretch at a time: 100,000 runs are not sent to whoever asks, and nobody waits for long meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

import redis
from kombu.utils.json import dumps
from redis.commands.core import Script

from agentlink.broker.streams import RUN_PREFIX
from workflows.states import RunState
from workflows.store import INDEX_KEY, RunRecord, as_text, how_many_runs, latest_runs, read_runs

_SCRIPT = resources.files(__package__).joinpath("search.lua").read_text()
# Two milliseconds of the broker's time.
_STRETCH = 500


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which runs: those of which all that is not empty holds."""

    state: RunState | None = None
    #: Its name, in full or its last part.
    workflow: str = ""
    tag: str = ""
    #: In its id, name, arguments, tags, error or agent; upper and lower case of ASCII letters are the same.
    text: str = ""

    @property
    def by_state_alone(self) -> bool:
        """Whether nothing is to be looked for."""
        return not (self.workflow or self.tag or self.text)


def search(client: redis.Redis, wanted: Wanted, count: int, skip: int = 0) -> tuple[list[RunRecord], int | None]:
    """So many of the runs called last, newest first, after those that are skipped; and how many there are in all.

    None: there are more than was asked for, and they were not counted.
    """
    if wanted.by_state_alone:
        return latest_runs(client, count, skip=skip, state=wanted.state), how_many_runs(client, wanted.state)
    ids: list[str] = []
    for found in _stretches(client, wanted):
        ids += found
        if len(ids) > skip + count:
            break
    total = len(ids) if len(ids) <= skip + count else None
    runs = read_runs(client, ids[skip : skip + count])
    return [run for run in runs if wanted.state in (None, run.state)], total


def _stretches(client: redis.Redis, wanted: Wanted) -> Iterator[Sequence[str]]:
    script = Script(client, _SCRIPT)
    index = INDEX_KEY if wanted.state is None else f"{INDEX_KEY}:{wanted.state}"
    tag = dumps(wanted.tag) if wanted.tag else ""
    for first in range(0, how_many_runs(client, wanted.state), _STRETCH):
        args = [first, first + _STRETCH - 1, RUN_PREFIX, wanted.workflow, tag, wanted.text.lower()]
        yield [as_text(run_id) for run_id in script(keys=[index], args=args)]
