"""The research workflow as an agent's process uses it: a real broker, a real worker, real files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from fpdf import FPDF

from tasks.files import PathMissing
from tests.integration.system import System
from workflows import CallRefused, RunState, research


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder with something of everything: 7 MB of prose, so that there are several batches."""
    folder = tmp_path / "sources"
    (folder / "node_modules").mkdir(parents=True)
    (folder / "tasks.md").write_text(
        "# Tasks\n\nIntroduction\nof two lines.\n\n\nTo stop a task, call\n`task.cancel()`.\n\nThat is all.\n"
    )
    (folder / "a page.html").write_text("<h1>Other</h1>\n<p>The <b>cancel</b> button.</p>\n")
    (folder / "logo.png").write_bytes(b"\x89PNG\0")
    os.mkfifo(folder / "pipe")
    for number in range(12):
        (folder / f"prose{number}.txt").write_text(("nothing to be found here " * 3 + "\n") * 9000)
    pdf = FPDF()
    pdf.set_font("helvetica", size=12)
    for text in ("first page", "a task to cancel"):
        pdf.add_page()
        pdf.text(20, 20, text)
    pdf.output(str(folder / "paper.pdf"))
    return folder


def test_the_answer_has_passages_with_lines_what_was_skipped_and_a_report(
    system: System, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.start_worker()
    monkeypatch.chdir(sources.parent)
    run = research.delay("sources", "how is a task cancelled?", top=4)
    answer: dict[str, Any] = run.get(timeout=30)

    assert [step.name.rsplit(".")[-1] for step in run.steps()].count("scan") > 1
    assert run.progress.state is RunState.SUCCEEDED
    places = [
        tuple(passage[part] for part in ("name", "page", "first_line", "last_line")) for passage in answer["passages"]
    ]
    assert places[0] == ("tasks.md", None, 7, 10)
    assert set(places[1:]) == {("tasks.md", None, 1, 4), ("paper.pdf", 2, 2, 2), ("a page.html", None, 1, 2)}
    assert answer["passages"][0]["file"] == str(sources / "tasks.md")
    assert answer["passages"][0]["text"] == "To stop a task, call\n`task.cancel()`.\n\nThat is all."
    assert {Path(entry["path"]).name: entry["reason"] for entry in answer["skipped"]} == {
        "logo.png": "binary",
        "node_modules": "folder of installed packages, not searched",
        "pipe": "not a file: a pipe, socket or device",
    }
    assert (answer["files"], answer["note"]) == (15, None)
    assert 0 < answer["duration_s"] < 30

    folder = system.settings.runs_folder / run.id
    assert answer["report_markdown"] == str(folder / "report.md")
    assert answer["report_html"] == str(folder / "report.html")
    assert "tasks.md:7-10" in (folder / "report.md").read_text()
    assert "tasks.md:7-10" in (folder / "report.html").read_text()


def test_nothing_to_search_is_an_answer_too(system: System, tmp_path: Path) -> None:
    system.start_worker()
    (tmp_path / "empty").mkdir()
    answer = research.delay(tmp_path / "empty", "why?").get(timeout=20)
    assert (answer["passages"], answer["files"], answer["skipped"]) == ([], 0, [])
    assert answer["note"] == "There was no file to search."
    assert answer["note"] in Path(answer["report_markdown"]).read_text()


def test_a_call_that_makes_no_sense_fails_at_the_caller_and_sends_nothing(system: System, tmp_path: Path) -> None:
    with pytest.raises(PathMissing):
        research.delay(tmp_path / "gone", "why?")
    with pytest.raises(CallRefused):
        research.delay(tmp_path, "")
    assert system.client.dbsize() == 0


def test_a_path_that_goes_before_a_worker_looks_fails_the_run_with_the_same_error(
    system: System, tmp_path: Path
) -> None:
    (tmp_path / "soon gone").mkdir()
    run = research.delay(tmp_path / "soon gone", "why?")
    (tmp_path / "soon gone").rmdir()
    system.start_worker()
    with pytest.raises(PathMissing) as caught:
        run.get(timeout=20)
    assert caught.value.path == str(tmp_path / "soon gone")
    assert run.progress.state is RunState.FAILED
