"""A worker's claim on the messages it has taken: it holds for as long as the worker lives, not by a clock.

One lease a process and broker, whatever becomes of connections. A thread says every third of the lease's length that
the worker lives; when it stops doing so, any other worker gives its messages back to the head of their queues. A worker
that was stopped for longer finds out with its next word to the broker: its lease is gone, and whatever it still does
for the messages it had is not recorded (they are no longer in flight under its name).
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources

import redis
from kombu.transport.redis import Channel
from redis.commands.core import Script

from agentlink.broker import limits
from agentlink.broker.along import Stored

logger = logging.getLogger(__name__)

LEASES_KEY = "agentlink:leases"
LAST_BEAT_KEY = "agentlink:last_beat"
IN_FLIGHT_PREFIX = "agentlink:inflight:"
STARTED_PREFIX = "agentlink:started:"
CLAIM_PREFIX = "agentlink:claim:"
WAKE_PREFIX = "agentlink:wake:"
DELAYED_PREFIX = "agentlink:delayed:"
#: The ids of revoked tasks, by when they may be forgotten (seconds since 1970).
REVOKED_KEY = "agentlink:revoked"
#: How much the step of the list for messages of runs is above that of the list of the same priority for others.
RUNS_STEP = 10

BEATS_A_LEASE = 3
# Acknowledgements that wait are sent no later than this many are there.
ACKNOWLEDGE_AT_ONCE = 64

_SCRIPTS = resources.files(__package__).joinpath("scripts")
_DELIVERIES = _SCRIPTS.joinpath("deliveries.lua").read_text("utf-8")
TURNS = _SCRIPTS.joinpath("turns.lua").read_text("utf-8")
LIMITS = limits.lua(WAKE=WAKE_PREFIX, DELAYED=DELAYED_PREFIX, SEPARATOR=Channel.sep, REVOKED=REVOKED_KEY)
EXCHANGE = _DELIVERIES + TURNS + LIMITS + _SCRIPTS.joinpath("exchange.lua").read_text("utf-8")
BEAT = _DELIVERIES + LIMITS + _SCRIPTS.joinpath("beat.lua").read_text("utf-8")


@dataclass(frozen=True, slots=True)
class Taken:
    """A message in flight: its number, the list it came from, and its JSON."""

    number: int
    key: str
    message: bytes


@dataclass
class Waiting:
    """Numbers of messages of which the broker is yet to be told."""

    acknowledged: list[int] = field(default_factory=list)
    returned: list[int] = field(default_factory=list)
    died: list[int] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    #: Results to be stored as their messages are acknowledged.
    results: list[tuple[int, Stored]] = field(default_factory=list)
    #: Messages of evicted tasks, to be given back: number, how often, bytes to be reserved from now on.
    evicted: list[tuple[int, int, int]] = field(default_factory=list)

    def __len__(self) -> int:
        numbers = len(self.acknowledged) + len(self.returned) + len(self.died) + len(self.started)
        return numbers + len(self.results) + len(self.evicted)

    @property
    def settled(self) -> set[int]:
        """Those that are in hand no longer."""
        told = (*(number for number, _ in self.results), *(number for number, _, _ in self.evicted))
        return {*self.acknowledged, *self.returned, *self.died, *told}

    def without_the_settled(self) -> Waiting:
        """The same; that a message was started need not be told any more once it is settled."""
        settled = self.settled
        return replace(self, started=[number for number in self.started if number not in settled])

    def arguments(self) -> list[int | bytes]:
        """As the exchange script takes them."""
        lists = [self.acknowledged, sorted(self.returned, reverse=True), self.died, self.started]
        results = [part for number, it in self.results for part in (number, it.key, it.value, it.keep_s)]
        evicted = [part for facts in self.evicted for part in facts]
        counts = [*map(len, lists), len(self.results), len(self.evicted)]
        return [*counts, *(number for numbers in lists for number in numbers), *results, *evicted]

    def and_then(self, later: Waiting) -> Waiting:
        """What was here, and what came later."""
        return Waiting(
            self.acknowledged + later.acknowledged,
            self.returned + later.returned,
            self.died + later.died,
            self.started + later.started,
            self.results + later.results,
            self.evicted + later.evicted,
        )


class Lease:
    """What this process has taken from one broker and not yet acknowledged.

    `make_client` makes a client for the thread that renews the lease. Methods may be called from any thread.
    """

    def __init__(self, make_client: Callable[[], redis.Redis], *, length_s: float, separator: str) -> None:
        self.worker = ""
        self.length_s = length_s
        #: The tags of the messages being worked on: a lost connection must not give those back.
        self.running_tags: Callable[[], set[str]] = set
        self._make_client = make_client
        self._separator = separator
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._number = 0
        self._in_hand: set[int] = set()
        self._waiting = Waiting()
        self._scripts: tuple[Script, Script] | None = None
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def held_here(self) -> bool:
        """Whether this is the process that took the messages, not one forked from it."""
        return self._pid == os.getpid()

    @property
    def gives_back(self) -> bool:
        """Whether a message is on its way back: there will be something to take."""
        return bool(self._waiting.returned or self._waiting.died or self._waiting.evicted)

    @property
    def waiting(self) -> int:
        """How much there is that has not been sent yet."""
        return len(self._waiting)

    def begin(self) -> None:
        """Claim a lease and keep renewing it; does nothing while one is held."""
        with self._lock:
            if self.worker:
                return
            self._claim(self._make_client())
            self._ending.clear()
            self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Send what waits, give back what is in hand, and give up the lease."""
        with self._lock:
            if not self.worker:
                return
            self._ending.set()
            client = self._make_client()
            self.reconcile(client)
            self._waiting.returned += sorted(self._in_hand)
            self.exchange(client, (), (), 0)
            client.zrem(LEASES_KEY, self.worker)
            client.delete(IN_FLIGHT_PREFIX + self.worker, STARTED_PREFIX + self.worker)
            self.worker = ""

    def tag(self, taken: Taken) -> str:
        """What names a message in flight everywhere: its delivery tag."""
        return f"{self.worker}/{taken.number}"

    def started(self, tag: str) -> None:
        """The message's task has begun: should this worker die now, that counts as one delivery of it."""
        with self._lock:
            number = self._number_of(tag)
            if number in self._in_hand:
                self._waiting.started.append(number)

    def acknowledge(self, tag: str, result: Stored | None = None) -> None:
        """The message is done with; the broker is told with the next exchange, and stores the result then."""
        with self._lock:  # held while the list is looked up: an exchange in another thread puts a new one in its place
            number = self._settle(tag, "acknowledged")
            if number and result is not None:
                self._waiting.results.append((number, result))
            elif number:
                self._waiting.acknowledged.append(number)

    def give_back(self, tag: str, *, counted: bool = False) -> None:
        """The message goes to the head of its queue with the next exchange; `counted` if its task began and died."""
        with self._lock:
            number = self._settle(tag, "given back")
            if number:
                (self._waiting.died if counted else self._waiting.returned).append(number)

    def give_back_evicted(self, tag: str, times: int, reserve_bytes: int) -> None:
        """The message of a task that was ended to free memory: its next attempt is to have so much."""
        with self._lock:
            if number := self._settle(tag, "given back"):
                self._waiting.evicted.append((number, times, reserve_bytes))

    def give_back_all_but(self, tags: set[str]) -> None:
        """Everything in hand goes back with the next exchange, but these."""
        with self._lock:
            idle = self._in_hand - {self._number_of(tag) for tag in tags}
            self._waiting.returned += idle
            self._in_hand -= idle

    def exchange(
        self, client: redis.Redis, queue_keys: Sequence[str], delayed_keys: Sequence[str], wanted: int
    ) -> tuple[list[Taken], float | None]:
        """Send what waits and take up to `wanted` messages, in one round trip.

        Returns the messages, and in how many seconds the next delayed one is due (None: there is none). A lost lease
        is logged and begun anew; nothing is taken then.
        """
        with self._lock:
            sent, self._waiting = self._waiting.without_the_settled(), Waiting()
            keys = [LEASES_KEY, IN_FLIGHT_PREFIX + self.worker, STARTED_PREFIX + self.worker]
            first = self._number + 1
            try:
                reply = self._script(client, 0)(
                    keys=[*keys, *delayed_keys, *queue_keys],
                    args=[self.worker, len(delayed_keys), wanted, first, *sent.arguments()],
                    client=client,
                )
            except redis.RedisError:
                # All of it may be sent twice. What the server may have handed out is looked for by `reconcile`.
                self._waiting = sent.and_then(self._waiting)
                raise
            if reply[0] == 0:
                self._lost(client)
                return [], None
            pairs = reply[2:]
            taken = [
                Taken(first + index, pairs[2 * index].decode(), pairs[2 * index + 1])
                for index in range(len(pairs) // 2)
            ]
            self._number += len(taken)
            self._in_hand.update(one.number for one in taken)
            return taken, (reply[1] / 1000 if reply[1] >= 0 else None)

    def reconcile(self, client: redis.Redis) -> None:
        """Give back what is in flight under our name and never reached us: a reply was lost with its connection."""
        with self._lock:
            in_flight = {int(number) for number in client.hkeys(IN_FLIGHT_PREFIX + self.worker)}
            if not in_flight:
                return
            strays = in_flight - self._in_hand - self._waiting.settled
            self._waiting.returned += strays
            self._number = max(self._number, *in_flight)
            if strays:
                logger.warning("%d messages had been handed out on a connection that broke; given back", len(strays))

    def _number_of(self, tag: str) -> int:
        """A message's number; 0, which none has, when it is another lease's."""
        worker, _, number = tag.rpartition("/")
        return int(number) if worker == self.worker else 0

    def _settle(self, tag: str, what: str) -> int:
        """The number of a message in hand, which it is no longer; 0 when there is nothing to be told of it."""
        number = self._number_of(tag)
        if not number:
            logger.warning("message %s is not %s: another worker has it by now", tag, what)
        if number not in self._in_hand:  # once, by whoever comes first: the request, or Celery's later word for it
            return 0
        self._in_hand.discard(number)
        return number

    def _script(self, client: redis.Redis, which: int) -> Script:
        if self._scripts is None:
            self._scripts = client.register_script(EXCHANGE), client.register_script(BEAT)
        return self._scripts[which]

    def _claim(self, client: redis.Redis) -> None:
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._number, self._in_hand, self._waiting = 0, set(), Waiting()
        self._beat(client, begin=True)

    def _lost(self, client: redis.Redis) -> None:
        logger.error(
            "this worker was not heard of for longer than its lease of %g s; %d messages it had are with other workers "
            "now, and what it still does for them is not recorded",
            self.length_s,
            len(self._in_hand),
        )
        self._claim(client)

    def _keep(self) -> None:
        client = self._make_client()
        interval_s = self.length_s / BEATS_A_LEASE
        pause_s = interval_s
        while not self._ending.wait(pause_s):
            try:
                self._beat(client, begin=False)
                pause_s = interval_s
            except redis.RedisError as error:
                # The worker's own connection reports the trouble; this one only has to be back in time.
                logger.debug("lease not renewed: %s", error)
                pause_s = min(interval_s, 1.0)

    def _beat(self, client: redis.Redis, *, begin: bool) -> None:
        prefixes = [IN_FLIGHT_PREFIX, STARTED_PREFIX, WAKE_PREFIX, self._separator]
        reply: Sequence[bytes] = self._script(client, 1)(
            keys=[LEASES_KEY, LAST_BEAT_KEY],
            args=[self.worker, int(self.length_s * 1000), "1" if begin else "", *prefixes],
            client=client,
        )
        for worker, count in _pairs(reply[1:]):
            if count:
                logger.warning("worker %s has ended; %d messages it had are queued again", worker.decode(), count)


def _pairs(flat: Sequence[bytes]) -> Iterable[tuple[bytes, int]]:
    return ((flat[index], int(flat[index + 1])) for index in range(0, len(flat), 2))
