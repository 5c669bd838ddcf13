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
from dataclasses import dataclass
from importlib import resources

import redis

logger = logging.getLogger(__name__)

LEASES_KEY = "agentlink:leases"
LAST_BEAT_KEY = "agentlink:last_beat"
IN_FLIGHT_PREFIX = "agentlink:inflight:"
STARTED_PREFIX = "agentlink:started:"
CLAIM_PREFIX = "agentlink:claim:"
WAKE_PREFIX = "agentlink:wake:"
DELAYED_PREFIX = "agentlink:delayed:"

BEATS_A_LEASE = 3
# Acknowledgements that wait are sent no later than this many are there.
ACKNOWLEDGE_AT_ONCE = 64

_SCRIPTS = resources.files(__package__).joinpath("scripts")
EXCHANGE = _SCRIPTS.joinpath("exchange.lua").read_text()
BEAT = _SCRIPTS.joinpath("beat.lua").read_text()


@dataclass(frozen=True, slots=True)
class Taken:
    """A message in flight: its number, the list it came from, and its JSON."""

    number: int
    key: str
    message: bytes


class Lease:
    """What this process has taken from one broker and not yet acknowledged.

    `make_client` makes a client for the thread that renews the lease. Methods may be called from any thread.
    """

    def __init__(self, make_client: Callable[[], redis.Redis], *, length_s: float, separator: str) -> None:
        self.worker = ""
        self.length_s = length_s
        #: Whether a message in hand is being worked on, so that a lost connection must not give it back.
        self.is_running: Callable[[str], bool] = lambda tag: False
        self._make_client = make_client
        self._separator = separator
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._number = 0
        self._in_hand: set[int] = set()
        self._acknowledged: list[int] = []
        self._returned: list[int] = []
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def held_here(self) -> bool:
        """Whether this is the process that took the messages, not one forked from it."""
        return self._pid == os.getpid()

    @property
    def waiting(self) -> int:
        """How many acknowledgements and returns have not been sent yet."""
        return len(self._acknowledged) + len(self._returned)

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
            self._returned += sorted(self._in_hand)
            self.exchange(client, (), (), 0)
            client.zrem(LEASES_KEY, self.worker)
            client.delete(IN_FLIGHT_PREFIX + self.worker, STARTED_PREFIX + self.worker)
            self.worker = ""

    def tag(self, taken: Taken) -> str:
        """What names a message in flight everywhere: its delivery tag."""
        return f"{self.worker}/{taken.number}"

    def acknowledge(self, tag: str) -> None:
        """The message is done with; the broker is told with the next exchange."""
        self._settle(tag, self._acknowledged, "acknowledged")

    def give_back(self, tag: str) -> None:
        """The message goes to the head of its queue with the next exchange."""
        self._settle(tag, self._returned, "given back")

    def exchange(
        self, client: redis.Redis, queue_keys: Sequence[str], delayed_keys: Sequence[str], wanted: int
    ) -> tuple[list[Taken], float | None]:
        """Send what waits and take up to `wanted` messages, in one round trip.

        Returns the messages, and in how many seconds the next delayed one is due (None: there is none). A lost lease
        is logged and begun anew; nothing is taken then.
        """
        with self._lock:
            acknowledged, returned = self._acknowledged, sorted(self._returned, reverse=True)
            self._acknowledged, self._returned = [], []
            keys = [
                LEASES_KEY,
                IN_FLIGHT_PREFIX + self.worker,
                STARTED_PREFIX + self.worker,
                *delayed_keys,
                *queue_keys,
            ]
            first = self._number + 1
            try:
                reply = client.register_script(EXCHANGE)(
                    keys=keys,
                    args=[self.worker, len(delayed_keys), wanted, first, len(acknowledged), *acknowledged, *returned],
                )
            except redis.RedisError:
                # Both may be sent twice. What the server may have handed out meanwhile is looked for by `reconcile`.
                self._acknowledged = acknowledged + self._acknowledged
                self._returned = returned + self._returned
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
            strays = in_flight - self._in_hand - set(self._acknowledged) - set(self._returned)
            self._returned += strays
            self._number = max(self._number, *in_flight)
            if strays:
                logger.warning("%d messages had been handed out on a connection that broke; given back", len(strays))

    def _settle(self, tag: str, where: list[int], what: str) -> None:
        worker, _, number = tag.rpartition("/")
        with self._lock:
            if worker != self.worker:
                logger.warning("message %s is not %s: another worker has it by now", tag, what)
                return
            where.append(int(number))
            self._in_hand.discard(int(number))

    def _claim(self, client: redis.Redis) -> None:
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._number, self._in_hand, self._acknowledged, self._returned = 0, set(), [], []
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
        reply: Sequence[bytes] = client.register_script(BEAT)(
            keys=[LEASES_KEY, LAST_BEAT_KEY],
            args=[self.worker, int(self.length_s * 1000), "1" if begin else "", *prefixes],
        )
        for worker, count in _pairs(reply[1:]):
            if count:
                logger.warning("worker %s has ended; %d messages it had are queued again", worker.decode(), count)


def _pairs(flat: Sequence[bytes]) -> Iterable[tuple[bytes, int]]:
    return ((flat[index], int(flat[index + 1])) for index in range(0, len(flat), 2))
