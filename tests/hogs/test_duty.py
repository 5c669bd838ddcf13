"""Where no control group can be made, the CPU limit is held by stopping and continuing, and nobody is harmed."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tasks import app
from tests.hogs import invariants, leftovers, work
from tests.hogs.load import ITERATIONS, SORTED, Call
from tests.hogs.test_mixed import read, unready
from tests.hogs.watch import watched
from tests.hogs.work import MB
from tests.integration.system import System, Worker
from tests.waiting import wait_until

pytestmark = [pytest.mark.hogs, pytest.mark.timeout(180)]

#: Starts a program that sees the hierarchy of control groups for the CPU and can't write there, as in a container.
READ_ONLY = ("unshare", "--mount", "sh", "-c", 'mount -o remount,bind,ro /sys/fs/cgroup/cpu && exec "$@"', "sh")
#: Starts one that is served first, in a session of its own, since Linux shares the CPU among sessions first: on a busy
#: machine it would be left less than its limit, and nobody would have to be held.
FIRST = ("setsid", "nice", "-n", "-10", "sh", "-c", 'echo -10 > /proc/self/autogroup; exec "$@"', "sh")
CPU_LIMIT = 0.6
BURNERS = 8
DONE_WITHIN_S = 120.0


def calls() -> list[Call]:
    """Tasks of four busy threads each, and short ones that come between."""
    hashes = [work.burn(salt, ITERATIONS) for salt in range(4)]
    made = [Call(task=work.burns, arguments=(ITERATIONS,), answer=hashes, honest=True) for _ in range(BURNERS)]
    made += [Call(task=work.holds_20_mb, arguments=(0.05,), answer=20 * MB, honest=True) for _ in range(40)]
    made += [Call(task=work.runs_a_program, arguments=(), answer=80 * MB, honest=True) for _ in range(4)]
    made += [Call(task=work.sorts, arguments=(SORTED,), answer=SORTED, honest=True) for _ in range(4)]
    random.Random(0).shuffle(made)
    return made


def stopped(worker: Worker) -> Iterator[str]:
    """Processes of a worker that are stopped now."""
    for process in psutil.Process(worker.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_STOPPED:
                yield str(process)


def cpu_held_by() -> str:
    """What the guard of the one worker says."""
    with app.connection_for_write() as connection:  # one of the pool may be of a broker that another test has killed
        [answer] = app.control.broadcast("guard", reply=True, timeout=20, limit=1, connection=connection)
    [guard] = answer.values()
    return str(guard["tasks"]["cpu_held_by"])


@pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run([*READ_ONLY, "true"], check=False, capture_output=True).returncode != 0,
    reason="needs the right to make a mount namespace, and control groups of version 1",
)
def test_the_cpu_limit_holds_where_no_control_group_can_be_made(system: System, tmp_path: Path) -> None:
    made, before, path = calls(), leftovers.there(), tmp_path / "ledger"
    path.touch()
    worker = system.start_worker(imports="tests.hogs.work", memory="1500MB", cpu="60%", before=(*READ_ONLY, *FIRST))
    home = f"AGENTLINK_HOME={system.settings.home}"
    began_at = time.monotonic()
    with watched([worker.pid, system.broker_pid()], tmp_path / "samples.csv", environment=home) as watch:
        ids = [call.task.delay(str(path), number, *call.arguments).id for number, call in enumerate(made)]
        deadline, were_stopped, held_by = time.monotonic() + DONE_WITHIN_S, False, ""
        while (unfinished := unready(system, ids)) and time.monotonic() < deadline:
            time.sleep(0.5)  # each look takes the broker some CPU time, which is watched
            were_stopped = were_stopped or any(stopped(worker))
            held_by = held_by or cpu_held_by()
    means = watch.cpu_fractions() or [0.0]
    print(
        f"\n{len(made)} tasks in {time.monotonic() - began_at:.0f} s; "
        f"CPU in 10 s: highest {max(means):.1%}, median {statistics.median(means):.1%}"
    )
    assert held_by == "stop and continue"
    wait_until(lambda: not list(stopped(worker)), what="the end of all stops")
    problems = [
        *(f"{made[number].name} (task {number}) is not done" for number in unfinished),
        *invariants.cpu_stays_under_its_limit(watch),
        *invariants.each_task_ends_as_it_should(read(made, ids, path)),
        *leftovers.problems(system, before),
    ]
    assert not problems, "\n".join(problems)
    # Where others leave it too little of the machine, nobody has to be stopped.
    assert were_stopped or max(means) < CPU_LIMIT
