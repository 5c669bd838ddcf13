"""How tasks and runs have ended, and how long they waited and ran: counted for each name, ever, over all workers.

A run is counted in the script that ends it. A task is counted by the main process of the worker that had it, in memory,
and told to the broker a moment later: it costs no step of the broker's, and a worker that is killed takes what it has
counted in its last half second with it. Of each name there is a hash in the broker.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import Any

import redis
from celery import Celery, signals

from agentlink.broker import chores
from agentlink.broker.chores import Chore

OUTCOMES_PREFIX = "agentlink:outcomes:"
#: Upper bounds of the buckets that seconds are counted in; one more is for what took longer.
BOUNDS_S = (0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400)
#: So many names of tasks, and as many of workflows, are told apart; further ones are "other".
NAMES_MAX = 100
# A name that nobody has run for so long is forgotten.
_KEPT_S = 30 * 86400
_TELL_EVERY_S = 0.5

_CONSTANTS = {
    "OUTCOMES": f"'{OUTCOMES_PREFIX}'",
    "BOUNDS_S": f"{{{', '.join(map(str, BOUNDS_S))}}}",
    "NAMES_MAX": NAMES_MAX,
    "KEPT_S": _KEPT_S,
}
#: Lua that stands before the scripts that end runs.
COUNTING_ENDS = "".join(f"local {name} = {value}\n" for name, value in _CONSTANTS.items()) + resources.files(
    __package__
).joinpath("scripts", "outcomes.lua").read_text("utf-8")
#: ARGV: now, then name, field, increment of each count.
_ADD = (
    COUNTING_ENDS
    + """
for i = 2, #ARGV, 3 do
    local hash = outcomes_of('task', ARGV[i], tonumber(ARGV[1]))
    redis.call('HINCRBY', hash, ARGV[i + 1], ARGV[i + 2])
    redis.call('EXPIRE', hash, KEPT_S)
end
"""
)


class Outcome(StrEnum):
    """What became of a task that a worker had."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    #: An attempt failed, and another was queued.
    RETRIED = "retried"
    #: It was withdrawn, or ended on request.
    REVOKED = "revoked"
    #: It has handed its work on: to what replaces it, to a signal it waits for, to another worker that has it.
    PASSED_ON = "passed_on"
    #: The guard has ended it, and it was queued again.
    EVICTED = "evicted"
    #: Its process died, and it was queued again.
    DIED = "died"
    #: Its process died once too often.
    BURIED = "buried"


@dataclass(frozen=True, kw_only=True, slots=True)
class Seconds:
    """How long something took each time: how often within each bound and not within the one before, and in all."""

    buckets: tuple[int, ...]
    sum_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcomes:
    """What is known of a name: how many have ended in each way, how long they waited for a worker, and ran."""

    ended: Mapping[str, int]
    waited: Seconds
    ran: Seconds


class Ends:
    """What this process has seen of tasks and not yet told. Any thread may note, and tell.

    To note costs next to nothing: the thread that hands out tasks does. It is counted when it is told.
    """

    def __init__(self) -> None:
        self._noted: deque[tuple[str, str | None, str, float | None]] = deque()
        self._lock = threading.Lock()
        #: By name, what ("ended", "waited", "ran") and outcome or bucket; and seconds, by name and what.
        self._counts: Counter[tuple[str, str, str | int]] = Counter()
        self._seconds: Counter[tuple[str, str]] = Counter()
        self._totals: Counter[str] = Counter()

    def waited(self, name: str, seconds: float) -> None:
        """A task has begun, so long after it was queued."""
        self._noted.append((name, None, "waited", seconds))

    def ended(self, name: str, outcome: Outcome, ran_s: float | None = None) -> None:
        """A task has ended, so long after it began, if it did."""
        self._noted.append((name, outcome, "ran", ran_s))

    def totals(self) -> Counter[str]:
        """How many have ended in each way, whatever their names."""
        with self._lock:
            self._count()
            return Counter(self._totals)

    def tell(self, client: redis.Redis) -> None:
        """Add what was noted to what the broker knows; if it is away, the next time.

        Raises:
            redis.RedisError: it is away.
        """
        with self._lock:
            self._count()
            if not self._counts:
                return
            flat: list[Any] = []
            for (name, what, which), number in self._counts.items():
                flat += (name, f"{what}:{which}", number)
            for (name, what), seconds in self._seconds.items():
                flat += (name, f"{what}:us", max(0, round(seconds * 1e6)))
            client.eval(_ADD, 0, repr(time.time()), *flat)
            self._counts.clear()
            self._seconds.clear()

    def _count(self) -> None:
        while self._noted:
            name, outcome, what, seconds = self._noted.popleft()
            if outcome is not None:
                self._counts[name, "ended", outcome] += 1
                self._totals[outcome] += 1
            if seconds is not None:
                self._counts[name, what, _bucket_of(seconds)] += 1
                self._seconds[name, what] += seconds  # type: ignore[assignment]  # whole numbers, say its types


#: Of this process, where it is a worker's main one.
ends = Ends()


def install(app: Celery) -> None:
    """Have every worker of `app` tell how its tasks have ended. Doing it twice changes nothing."""
    chores.add(app, _teller)
    signals.worker_shutdown.connect(_tell_the_last, weak=False, dispatch_uid="agentlink.outcomes")


def _teller(app: Celery) -> Chore:
    def tell() -> float:
        ends.tell(app.backend.client)
        return _TELL_EVERY_S

    return Chore(name="telling how tasks have ended", first_in_s=_TELL_EVERY_S, do=tell)


def _tell_the_last(sender: Any, **_: Any) -> None:
    """What has ended while the worker stopped."""
    try:
        ends.tell(sender.app.backend.client)
    except redis.RedisError:
        return  # it is not worth waiting for


def read(client: redis.Redis, kind: str) -> dict[str, Outcomes]:
    """What is known of each name of a kind: "task" or "run"."""
    names: list[bytes] = client.zrange(OUTCOMES_PREFIX + kind, 0, -1)  # type: ignore[assignment]  # no scores asked for
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hgetall(f"{OUTCOMES_PREFIX}{kind}:{_text(name)}")
        answers = pipe.execute()
    return {_text(name): _outcomes(counts) for name, counts in zip(names, answers, strict=True) if counts}


def _outcomes(counts: Mapping[bytes, bytes]) -> Outcomes:
    said = {_text(field): int(number) for field, number in counts.items()}
    prefix = "ended:"
    ended = {field.removeprefix(prefix): number for field, number in said.items() if field.startswith(prefix)}
    return Outcomes(ended=ended, waited=_seconds(said, "waited"), ran=_seconds(said, "ran"))


def _seconds(said: Mapping[str, int], what: str) -> Seconds:
    buckets = tuple(said.get(f"{what}:{number}", 0) for number in range(1, len(BOUNDS_S) + 2))
    return Seconds(buckets=buckets, sum_s=said.get(f"{what}:us", 0) / 1e6)


def _bucket_of(seconds: float) -> int:
    """As the scripts number them."""
    return bisect_left(BOUNDS_S, seconds) + 1


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
