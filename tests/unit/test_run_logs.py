"""How what a run's steps have said is printed."""

from __future__ import annotations

import json
import time
from typing import Any

from agentlink import run_logs, run_view
from workflows import Progress, RunState, StreamItem

AT = time.mktime((2026, 1, 2, 3, 4, 5, 0, 0, -1))


def _item(data: Any, *, step: str = "a", attempt: int = 1, kind: str = "emit") -> StreamItem:
    return StreamItem(step_id=step, task=f"tests.{step}", attempt=attempt, kind=kind, data=data, at=AT)


def _printed(*items: StreamItem) -> str:
    pieces: list[str] = []
    run_logs.write(run_logs.as_text(items), pieces.append)
    return "".join(pieces)


def test_text_goes_on_where_it_ended_and_lines_stand_alone() -> None:
    printed = _printed(_item("one "), _item("two"), _item("so it is", kind="log"), _item("three\n"), _item("four"))
    assert printed == "one two\n03:04:05 a: so it is\nthree\nfour\n"


def test_an_empty_part_changes_nothing() -> None:
    assert _printed(_item("one"), _item(""), _item("two")) == "onetwo\n"
    assert _printed(_item("")) == ""
    assert _printed() == ""


def test_another_step_and_data_begin_a_line() -> None:
    assert _printed(_item("one"), _item("two", step="b"), _item({"n": "é"}), _item(1)) == 'one\ntwo\n{"n": "é"}\n1\n'


def test_an_attempt_that_begins_again_is_announced() -> None:
    printed = _printed(_item("lost"), _item("found", attempt=2), _item("!", attempt=2))
    assert printed == "lost\n-- a begins again (attempt 2)\nfound!\n"


def test_a_terminal_is_not_told_what_to_do() -> None:
    assert _printed(_item("\x1b[2Jgone\t!\r\n")) == "\ufffd[2Jgone\t!\ufffd\n"


def test_as_json_each_is_a_line() -> None:
    lines = "".join(run_logs.as_json([_item("é\n"), _item("so", kind="log")])).splitlines()
    assert [json.loads(line)["data"] for line in lines] == ["é\n", "so"]
    assert json.loads(lines[0])["step_id"] == "a"


def test_the_runs_own_bar_tells_percentage_time_left_and_the_first_line_of_the_message() -> None:
    def progress(fraction: float, left_s: float | None, message: str | None) -> Progress:
        return Progress(
            state=RunState.RUNNING, steps_done=0, steps_total=1, fraction=fraction, left_s=left_s, message=message
        )

    shown = run_view._whole(progress(0.428, 75.0, "reading [page] 12\nof many"))
    assert shown == {"completed": 0.428, "done": "42 %, 1 m 15 s left", "note": "reading [page] 12"}
    assert run_view._whole(progress(0.999, None, None)) == {"completed": 0.999, "done": "99 %", "note": ""}
