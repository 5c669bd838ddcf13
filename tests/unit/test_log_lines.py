"""What a line of the log looks like, for people and for programs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from celery._state import _task_stack

from agentlink.log_lines import JsonLines, TextLines, formatter
from agentlink.monitoring import logs
from tasks import app


def _record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    record = logging.LogRecord("mywork", logging.INFO, "mywork.py", 1, message, args, None)
    record.created, record.msecs = 1_700_000_000.25, 250.0
    vars(record).update(extra)
    return record


def _failed() -> logging.LogRecord:
    record = _record("it failed")
    try:
        int("token=hush ")
    except ValueError:
        record.exc_info = sys.exc_info()
    return record


FACTS = {"task": "mywork.read", "run": "r1", "step": "s1", "attempt": 2, "worker": "cpu@here"}


def test_text_for_people_ends_with_what_it_belongs_to() -> None:
    lines = TextLines(logging.Formatter("[%(levelname)s] %(message)s"), lambda record: FACTS)
    assert lines.format(_record("read %d pages", 3)) == "[INFO] read 3 pages (run=r1 step=s1 attempt=2 worker=cpu@here)"
    assert lines.format(_record("Task mywork.read[s1] received")).endswith(
        "received (run=r1 attempt=2 worker=cpu@here)"
    )


def test_text_that_belongs_to_nothing_is_as_it_was() -> None:
    assert TextLines(logging.Formatter()).format(_record("ready")) == "ready"


def test_a_traceback_follows_the_facts() -> None:
    text = TextLines(logging.Formatter(), lambda record: {"run": "r1"}).format(_failed())
    assert text.startswith("it failed (run=r1)\nTraceback")
    assert "token=***" in text.splitlines()[-1]
    assert "hush" not in text.splitlines()[-1]


def test_json_has_each_fact_by_its_name() -> None:
    text = JsonLines(lambda record: FACTS).format(_record("read %d pages\nof it", 3, pages=3, api_key="hush"))
    assert "\n" not in text
    assert json.loads(text) == {
        "at": "2023-11-14T22:13:20.250Z",
        "level": "INFO",
        "logger": "mywork",
        "message": "read 3 pages\nof it",
        "process": "MainProcess",
        "pid": logging.LogRecord("", 0, "", 0, "", (), None).process,
        "pages": 3,
        "api_key": "***",
        **FACTS,
    }


def test_json_has_the_traceback_in_the_same_line() -> None:
    facts = json.loads(JsonLines(process="up").format(_failed()))
    assert facts["process"] == "up"
    assert facts["error"].startswith("Traceback")
    assert "token=***" in facts["error"].splitlines()[-1]


def test_what_json_can_not_have_is_shown_as_text() -> None:
    assert json.loads(JsonLines().format(_record("x", where={1, 2})))["where"] == "{1, 2}"


@pytest.mark.parametrize(("log_format", "kind"), [("text", TextLines), ("json", JsonLines)])
def test_the_setting_chooses(log_format: str, kind: type[logging.Formatter]) -> None:
    made = formatter(log_format, logging.Formatter())
    assert type(made) is kind
    assert "hush" not in made.format(_record("connecting to redis://:hush@host"))


def test_a_line_of_a_running_task_belongs_to_its_step() -> None:
    seen: list[Mapping[str, Any]] = []

    @app.task(name="tests.look", shared=False)
    def look() -> None:
        seen.append(logs.facts_of(_record("x")))

    look.push_request(id="s1", root_id="r1", retries=1, agentlink_deliveries=1, called_directly=False)
    _task_stack.push(look)
    try:
        look.run()
    finally:
        _task_stack.pop()
        look.pop_request()
        app.tasks.pop("tests.look")
    assert [{name: fact for name, fact in facts.items() if name != "worker"} for facts in seen] == [
        {"task": "tests.look", "run": "r1", "step": "s1", "attempt": 3}
    ]


def test_a_line_of_nobodys_is_the_workers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_worker", ["cpu@here"])
    assert logs.facts_of(_record("ready")) == {"worker": "cpu@here"}


def test_a_line_about_a_task_that_is_not_known_yet_has_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_worker", ["cpu@here"])
    record = _record("%(name)s[%(id)s] received", {"id": "s1", "name": "mywork.read"})
    assert logs.facts_of(record) == {"task": "mywork.read", "step": "s1", "worker": "cpu@here"}
