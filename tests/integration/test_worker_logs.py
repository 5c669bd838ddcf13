"""What workers write into their logs about tasks, and what they keep to themselves."""

from __future__ import annotations

import json
from typing import Any

from agentlink.broker.streams import LOG
from tasks import app
from tests.integration import sample, talking
from tests.integration.system import System, Worker
from tests.waiting import wait_until
from workflows.streams import said_so_far

IMPORTS = "tests.integration.sample,tests.integration.talking"


def _lines(worker: Worker, text: str) -> list[dict[str, Any]]:
    """The log's lines with this text, all of which are JSON."""
    lines = [json.loads(line) for line in worker.log.splitlines() if line.startswith("{")]
    return [line for line in lines if text in line["message"]]


def test_each_line_of_a_step_says_what_it_belongs_to(system: System) -> None:
    worker = system.start_worker(log_format="json", imports=IMPORTS)
    run = talking.reading.delay()
    run.get(timeout=20)
    (step_id,) = [step.id for step in run.steps() if step.name.endswith("read_pages")]
    wait_until(lambda: _lines(worker, "succeeded in"), what="the end in the log")
    told = _lines(worker, "read 3 pages")
    assert len(told) == 1
    expected = {"run": run.id, "step": step_id, "attempt": 1, "worker": "worker0@test", "level": "INFO"}
    assert {name: told[0][name] for name in expected} == expected
    (line,) = [line for line in _lines(worker, "succeeded in") if step_id in line["message"]]
    assert {name: line[name] for name in expected} == expected
    (line,) = [line for line in _lines(worker, "received") if step_id in line["message"]]
    assert (line["step"], line["worker"]) == (step_id, "worker0@test")


def test_text_has_the_same(system: System) -> None:
    worker = system.start_worker(imports=IMPORTS)
    run = talking.reading.delay()
    run.get(timeout=20)
    (step_id,) = [step.id for step in run.steps() if step.name.endswith("read_pages")]
    worker.wait_for_log(f"(run={run.id} step={step_id} attempt=1 worker=worker0@test)")


def test_an_attempt_is_counted_and_its_traceback_is_one_line(system: System) -> None:
    worker = system.start_worker(log_format="json")
    result = sample.fail.delay("Authorization: Bearer hush")
    result.get(timeout=20, propagate=False)
    wait_until(lambda: _lines(worker, "raised unexpected"), what="the failure in the log")
    (line,) = _lines(worker, "raised unexpected")
    assert (line["step"], line["level"], "run" in line) == (result.id, "ERROR", False)
    assert "Bearer ***" in line["error"]
    assert "hush" not in worker.log


def test_secrets_are_in_no_log_and_no_event(system: System) -> None:
    worker = system.start_worker("--loglevel", "DEBUG", "-E")
    result = sample.log_in.delay("anna", "hush", options={"api_key": "hush", "page": 7})
    assert result.get(timeout=20) == 2
    worker.wait_for_log("succeeded in")
    assert "'page': 7" in worker.log, "arguments are logged at all"
    assert "hush" not in worker.log


def test_a_runs_own_log_has_no_secrets(system: System) -> None:
    system.start_worker(imports=IMPORTS)
    run = talking.reading.delay()
    run.get(timeout=20)
    told = said_so_far(app.backend.client, run.id, (LOG,))
    assert [item.data for item in told] == ["read 3 pages with token=***"]
