"""What a worker does beside its tasks: look, every now and then, whether there is something to do, and do it.

In two threads of its main process, not one for each chore: every thread costs memory, makes each look at the
processes' tree dearer, and takes the interpreter from the thread that hands out tasks when it wakes. What is soon done
is in one, what may take seconds in the other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import redis
from celery import Celery, bootsteps

from agentlink.errors import AgentLinkError

logger = logging.getLogger(__name__)

#: After an error, a chore is done again in so many seconds.
_AWAY_S = 1.0
# Those that are due within so many seconds are done at once, in one waking.
_TOGETHER_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Chore:
    """Something to do from the start of a worker to its end, the first time in `first_in_s` seconds.

    `do` returns in how many seconds it is to be called again. When the broker is away it may raise what redis-py or
    AgentLink raise for that: it is called again soon.
    """

    name: str
    first_in_s: float
    do: Callable[[], float]


#: Makes a chore of the app of a worker that starts, before it has processes.
Make = Callable[[Celery], Chore]
_makes: dict[Literal["soon done", "slow"], list[Make]] = {"soon done": [], "slow": []}


def add(app: Celery, make: Make, *, slow: bool = False) -> None:
    """Have every worker of `app` do this chore. Doing it twice changes nothing."""
    makes = _makes["slow" if slow else "soon done"]
    if make not in makes:
        makes.append(make)
    app.steps["worker"].add(ChoreStep)


class ChoreStep(bootsteps.StartStopStep):
    """Does chores from the start of the worker to its end."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._chores = {thread: [make(worker.app) for make in makes] for thread, makes in _makes.items()}
        self._ending = threading.Event()

    def start(self, worker: Any) -> None:
        """After the pool has its processes."""
        for thread, chores in self._chores.items():
            if not chores:
                continue
            threading.Thread(target=self._keep, args=(chores,), name=f"chores, {thread}", daemon=True).start()

    def stop(self, worker: Any) -> None:
        """What is being done is soon done, or done by another worker: the thread ends with the process."""
        self._ending.set()

    terminate = stop

    def _keep(self, chores: list[Chore]) -> None:
        begun_at = time.monotonic()
        due_at = {chore: begun_at + chore.first_in_s for chore in chores}
        while not self._ending.wait(min(due_at.values()) - time.monotonic()):
            for chore in chores:
                if due_at[chore] <= time.monotonic() + _TOGETHER_S and not self._ending.is_set():
                    due_at[chore] = time.monotonic() + _do(chore)


def _do(chore: Chore) -> float:
    try:
        return chore.do()
    except (redis.RedisError, OSError, AgentLinkError) as error:
        logger.info("%s: not this time: %s", chore.name, error)
    except Exception:
        logger.exception("%s: not this time", chore.name)
    return _AWAY_S
