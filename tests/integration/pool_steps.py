"""What tests add to a worker: tasks that run for 30 % of the time only, and a command that replaces idle processes."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from celery import bootsteps
from celery.worker import state as worker_state
from celery.worker.control import control_command

from resource_guard.actions import TreeEnding
from resource_guard.duty import DutyCycle
from resource_guard.recycle import take_out
from resource_guard.time_limits import count_running_time_only
from tasks import app

RUN_FRACTION = float(os.environ.get("TEST_RUN_FRACTION", "1"))


class DutyStep(bootsteps.StartStopStep):
    requires = ("celery.worker.components:Pool",)

    def start(self, worker: Any) -> None:
        self.duty = DutyCycle(lambda: [request.worker_pid for request in worker_state.active_requests])
        count_running_time_only(worker.pool._pool, self.duty.stopped_s)
        if RUN_FRACTION < 1:
            self.duty.run_for(RUN_FRACTION)

    def stop(self, worker: Any) -> None:
        self.duty.close()


@control_command()
def recycle_idle(state: Any, **_: Any) -> list[int]:
    """Replace all that are idle."""
    pool = state.consumer.controller.pool._pool
    endings = [ending for process in list(pool._pool) if (ending := take_out(pool, process.pid))]
    threading.Thread(target=_end, args=[list(endings)]).start()
    return [ending.pid for ending in endings]


def _end(endings: list[TreeEnding]) -> None:
    while endings := [ending for ending in endings if not ending.step(time.monotonic())]:
        time.sleep(0.02)


app.steps["worker"].add(DutyStep)
