"""What tasks take, kept in the broker: measured by any worker, known to all, better every day."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable

import redis

from resource_guard.caps import Used
from resource_guard.followers import is_short
from resource_guard.profiles import KEPT, Profile, profile

PROFILES_KEY = "agentlink:profiles"
MEASURES_PREFIX = "agentlink:measures:"

# A name that nobody has run for so long is forgotten.
_KEPT_S = 90 * 86400
_NAMES_MAX = 10_000
#: New measures are written, and others' read, this often.
_EXCHANGE_S = 2.0
# Measuring costs a tenth of a millisecond: each of the first runs of a name, then some, and of short ones fewer.
_MEASURE_FIRST = 20
_MEASURE_SHARE = 1 / 16
_MEASURE_SHARE_SHORT = 1 / 200


class Profiles:
    """The profiles a worker goes by. `begin` and `end` its exchange with the broker, which has a thread of its own."""

    def __init__(self, make_client: Callable[[], redis.Redis]) -> None:
        self._make_client = make_client
        self._lock = threading.Lock()
        self._measures: dict[str, deque[Used]] = {}
        self._profiles: dict[str, Profile] = {}
        self._new: dict[str, list[Used]] = defaultdict(list)
        self._read_until = 0.0
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Read what is known, and keep writing and reading. A broker that is away is asked again later."""
        self._exchange_if_possible()
        self._ending.clear()
        self._thread = threading.Thread(target=self._keep, name="profiles", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Write what has not been written."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._exchange_if_possible()

    def of(self, name: str) -> Profile | None:
        """What is known of a task name."""
        return self._profiles.get(name)

    def wants(self, name: str) -> bool:
        """Whether the next run of this task is worth measuring."""
        known = self._profiles.get(name)
        if known is None or known.runs < _MEASURE_FIRST:
            return True
        return random.random() < (_MEASURE_SHARE_SHORT if is_short(known) else _MEASURE_SHARE)  # noqa: S311

    def learn(self, name: str, used: Used) -> None:
        """A task has taken so much."""
        with self._lock:
            self._new[name].append(used)
            self._add(name, [used])

    def _add(self, name: str, measures: Iterable[Used]) -> None:
        kept = self._measures.setdefault(name, deque(maxlen=KEPT))
        kept.extend(measures)
        self._profiles[name] = profile(name, list(kept))

    def _keep(self) -> None:
        while not self._ending.wait(_EXCHANGE_S):
            self._exchange_if_possible()

    def _exchange_if_possible(self) -> None:
        with contextlib.suppress(redis.RedisError):
            self._exchange(self._make_client())

    def _exchange(self, client: redis.Redis) -> None:
        with self._lock:
            new, self._new = self._new, defaultdict(list)
        try:
            record(client, new)
        except redis.RedisError:
            with self._lock:
                for name, measures in new.items():
                    self._new[name] = measures + self._new[name]
            raise
        known, self._read_until = read(client, self._read_until)
        with self._lock:
            for name, measures in known.items():
                if name not in self._new:  # what we have measured meanwhile is not there yet
                    self._measures[name] = deque(measures, maxlen=KEPT)
                    self._profiles[name] = profile(name, measures)


def record(client: redis.Redis, measures: dict[str, list[Used]]) -> None:
    """Add what was measured to what is known."""
    if not measures:
        return
    with client.pipeline() as pipe:
        for name, used in measures.items():
            key = MEASURES_PREFIX + name
            pipe.rpush(key, *(json.dumps([one.peak_bytes, round(one.cpu_s, 4), round(one.wall_s, 4)]) for one in used))
            pipe.ltrim(key, -KEPT, -1)
            pipe.expire(key, _KEPT_S)
            pipe.zadd(PROFILES_KEY, {name: time.time()})
        pipe.zremrangebyscore(PROFILES_KEY, "-inf", time.time() - _KEPT_S)
        pipe.zremrangebyrank(PROFILES_KEY, 0, -_NAMES_MAX - 1)
        pipe.expire(PROFILES_KEY, _KEPT_S)
        pipe.execute()


def read(client: redis.Redis, since: float = 0.0) -> tuple[dict[str, list[Used]], float]:
    """What is known of the names that were measured at or after `since`, by the last; and when that last one was."""
    raw: list[tuple[bytes | str, float]] = client.zrevrangebyscore(  # type: ignore[assignment]  # scores asked for
        PROFILES_KEY, "+inf", since, withscores=True
    )
    names = [name.decode() if isinstance(name, bytes) else name for name, _ in raw]
    with client.pipeline() as pipe:
        for name in names:
            pipe.lrange(MEASURES_PREFIX + name, 0, -1)
        answers = pipe.execute()
    known = {name: [_used(entry) for entry in entries] for name, entries in zip(names, answers, strict=True) if entries}
    return known, max((at for _, at in raw), default=since)


def profiles(client: redis.Redis) -> list[Profile]:
    """The profile of each task name that has ever been measured, the most recently run first."""
    return [profile(name, measures) for name, measures in read(client)[0].items()]


def _used(entry: bytes | str) -> Used:
    peak_bytes, cpu_s, wall_s = json.loads(entry)
    return Used(peak_bytes=peak_bytes, cpu_s=cpu_s, wall_s=wall_s)
