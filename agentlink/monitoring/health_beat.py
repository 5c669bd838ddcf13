"""A worker's heartbeat comes from its main loop: one that hangs is not heard of, one that its guard has paused is.

There are times when that loop does not turn and nothing is wrong: while the broker is away, Celery waits for it
outside the loop, and in the solo pool a task runs inside the loop. Then a thread beats, which lasts as long as that.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

from celery import Celery, bootsteps, signals
from celery.concurrency import solo
from celery.worker import state as worker_state

from agentlink import heartbeats
from agentlink.heartbeats import BEAT_S, IN_WORDS, State
from agentlink.settings import load
from agentlink.systemd import Notifier

logger = logging.getLogger(__name__)


class Pulse:
    """What this process, a worker, tells of itself: to the heartbeat file and to systemd."""

    def __init__(self, home: Path, worker: str, notifier: Notifier) -> None:
        self._home, self._worker, self._notifier = home, worker, notifier
        self._state: State = "starting"
        #: Asks the main loop for beats while it turns.
        self._timer: Any = None
        # Whether it has been asked for one and has not come to it.
        self._asked = False
        # Set when nobody has to beat in its place.
        self._alone = threading.Event()
        self._alone.set()
        self._troubled = False
        self._say("starting")

    def loop_turns(self, consumer: Any) -> None:
        """The consumer has a connection; the main loop begins to turn."""
        if not isinstance(consumer.pool, solo.TaskPool):
            self._alone.set()
        self._asked = False
        self._timer = consumer.timer.call_repeatedly(BEAT_S, self.ask, (consumer,))
        self._say("ready")
        self._notifier.ready(IN_WORDS["ready"])

    def loop_stops(self) -> None:
        """The connection is gone, or the end has come."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._state != "stopping":
            self._say("waiting")
            self._notifier.status(IN_WORDS["waiting"])
            self.stand_in()

    def stand_in(self) -> None:
        """Celery is about to wait for a broker: a thread beats until the loop turns, or whenever a task holds it."""
        if self._alone.is_set():
            self._alone = threading.Event()
            threading.Thread(target=self._beat_in_its_place, args=(self._alone,), name="heartbeat", daemon=True).start()

    def stopping(self) -> None:
        """The worker takes nothing more."""
        self._alone.set()
        self._say("stopping")
        self._notifier.stopping(IN_WORDS["stopping"])

    def end(self) -> None:
        """The worker has ended as it should."""
        try:
            heartbeats.end(self._home, self._worker)
        except OSError as error:
            self._note(error)

    def ask(self, consumer: Any) -> None:
        """Have the main loop beat: the timer may be a thread of its own."""
        if not self._asked:
            self._asked = True
            consumer.call_soon(self._beat)

    def _beat_in_its_place(self, loop_turns: threading.Event) -> None:
        while not loop_turns.wait(BEAT_S):
            if self._timer is None or worker_state.active_requests:
                self._beat()

    def _beat(self) -> None:
        self._asked = False
        self._notifier.alive()
        try:
            heartbeats.beat(self._home, self._worker)
            self._troubled = False
        except FileNotFoundError:
            self._say(self._state)
        except OSError as error:
            self._note(error)

    def _say(self, state: State) -> None:
        self._state = state
        try:
            heartbeats.say(self._home, self._worker, state)
        except OSError as error:
            self._note(error)

    def _note(self, error: OSError) -> None:
        """Say it once: there will be a beat every other second."""
        if not self._troubled:
            self._troubled = True
            logger.warning("the heartbeat can't be written: %s", error)


def install(app: Celery) -> None:
    """Have every worker of `app` tell that it lives. Doing it twice changes nothing."""
    app.steps["worker"].add(BeatStep)
    app.steps["consumer"].add(LoopStep)


class BeatStep(bootsteps.StartStopStep):
    """Begins the pulse, and tells of its end."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        # Here, before processes are made: they are not to inherit systemd's address.
        _pulses[:] = [Pulse(load().home, worker.hostname, Notifier.of_this_process())]

    def start(self, worker: Any) -> None:
        """After the pool has its processes, before there is a connection."""
        for pulse in _pulses:
            pulse.stand_in()

    def close(self, worker: Any) -> None:
        """The first thing that happens when a worker stops, warm or cold."""
        for pulse in _pulses:
            pulse.stopping()


class LoopStep(bootsteps.StartStopStep):
    """Tells when the main loop turns: from each connect to the loss of that connection."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """After every connect."""
        for pulse in _pulses:
            pulse.loop_turns(consumer)

    def stop(self, consumer: Any) -> None:
        """After every loss of the connection, and at the end."""
        for pulse in _pulses:
            pulse.loop_stops()


#: That of this process: a worker has one, any other process none.
_pulses: list[Pulse] = []


@signals.worker_shutdown.connect
def _end(**_: Any) -> None:
    for pulse in _pulses:
        pulse.end()
