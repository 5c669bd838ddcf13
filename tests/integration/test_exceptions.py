"""What a task raises reaches whoever asks for its result, with its type, its fields and its cause."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tests.integration import sample
from tests.integration.system import REPOSITORY, System
from workflows import RunState


def test_exceptions_arrive_as_they_were_raised(system: System) -> None:
    system.start_worker()
    run = sample.overdraws.delay("A1")
    with pytest.raises(sample.Overdrawn, match=r"A1 lacks 2\.5") as raised:
        run.get(timeout=20)
    error = raised.value
    assert (error.account, error.missing) == ("A1", 2.5)
    assert str(error.seen_by).startswith("<unlocked _thread.lock")
    assert run.progress.state is RunState.FAILED
    # The cause is in the text: what was raised, and what it said.
    traceback = str(run.traceback)
    assert "KeyError: 'the cause'" in traceback
    assert traceback.index("KeyError: 'the cause'") < traceback.index("sample.Overdrawn: A1 lacks 2.5")

    several = sample.overdraw.delay("A2", several=True)
    with pytest.raises(ExceptionGroup, match="several") as group:
        several.get(timeout=20)
    overdrawn, other = group.value.exceptions
    assert isinstance(overdrawn, sample.Overdrawn)
    assert (overdrawn.account, type(other), other.args) == ("A2", OSError, ("and this",))
    assert "KeyError: 'the cause'" in str(several.traceback)

    unknown = sample.fail_elsewhere.delay()
    with pytest.raises(Exception, match="order") as rejected:
        unknown.get(timeout=20)
    back: Any = rejected.value
    assert (type(back).__name__, back.args, back.fields) == ("Rejected", ("order", 7), ["size"])


def test_a_plain_celery_client_reads_them_too(system: System) -> None:
    system.start_worker()
    task_id = sample.fail.delay("no such file").id
    script = f"""
from celery import Celery
app = Celery(broker={system.settings.url!r}, backend={"redis+" + system.settings.result_url!r})
try:
    app.AsyncResult({task_id!r}).get(timeout=20)
except ValueError as error:
    print(repr(error))
"""
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], cwd=REPOSITORY / "docs", text=True, capture_output=True,
        timeout=30, check=False,
    )  # fmt: skip
    assert said.stdout.strip() == "ValueError('no such file')", said.stderr
