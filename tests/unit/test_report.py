"""The report: complete, safe to open whatever the files hold, and never half written."""

from __future__ import annotations

import re
import stat
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tasks import report
from tasks.bm25 import Answer, Found

HOSTILE = "</pre><script>alert('1')</script> \" onload=\"x & y"


def found(text: str = "to cancel a Task", file: str = "/data/notes/a b.txt", page: int | None = None) -> Found:
    return Found(
        file=file, name=file.removeprefix("/data/"), page=page, first_line=3, last_line=5, score=1.2345, text=text
    )


def answer(*passages: Found, question: str = "how to cancel?", skipped: tuple[tuple[str, str], ...] = ()) -> Answer:
    return Answer(
        question=question,
        terms=["cancel"],
        passages=list(passages),
        note=None if passages else "No passage has a word of the question in it.",
        files=12,
        passages_searched=3456,
        skipped=[{"path": path, "reason": reason} for path, reason in skipped],
    )


class _Page(HTMLParser):
    """The text of a page, its tags, and everything a browser would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.attributes = "", [], []  # type: ignore[var-annotated]
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def write(tmp_path: Path, answer: Answer) -> tuple[str, _Page]:
    written = report.write(answer, tmp_path / "runs" / "1", duration_s=1.5)
    return Path(written["report_markdown"]).read_text(), _Page(Path(written["report_html"]).read_text())


def test_both_say_what_was_found_where_and_what_was_not_searched(tmp_path: Path) -> None:
    markdown, page = write(tmp_path, answer(found(), found(page=7), skipped=(("/data/x.bin", "binary"),)))
    for text in (markdown, page.text):
        assert "how to cancel?" in text.replace("\\", "")
        assert "2 passages of 3,456 in 12 files, found in 1.5 s." in text
        assert "notes/a b.txt:3-5" in text
        assert "notes/a b.txt:3-5 (page 7)" in text
        assert "to cancel a Task" in text
        assert "1.23" in text
        assert "Not searched (1)" in text
        assert "/data/x.bin" in text
        assert "binary" in text
    assert "`/data/notes/a b.txt:3-5`, score 1.23" in markdown
    assert ("href", "file:///data/notes/a%20b.txt") in page.attributes
    assert page.tags.count("mark") == 2


def test_no_passages_is_a_report_too(tmp_path: Path) -> None:
    markdown, page = write(tmp_path, answer())
    for text in (markdown, page.text):
        assert "No passage has a word of the question in it." in text
        assert "0 passages of 3,456" in text
    assert "details" not in page.tags


def test_nothing_in_files_or_questions_acts_as_html(tmp_path: Path) -> None:
    hostile = found(text=HOSTILE, file=f"/data/{HOSTILE.replace('/', '')}")
    _, page = write(tmp_path, answer(hostile, question=HOSTILE, skipped=((HOSTILE, HOSTILE),)))
    _, plain = write(tmp_path, answer(found(), skipped=(("a", "b"),)))
    assert set(page.tags) <= set(plain.tags)
    assert {name for name, _ in page.attributes} == {name for name, _ in plain.attributes}
    assert page.text.count("alert('1')") == 6  # title, heading, citation, passage, and what was skipped twice


def test_nothing_in_files_or_questions_acts_as_markdown(tmp_path: Path) -> None:
    hostile = found(text="```\n# not a heading\n````", file="/data/`a` `` b")
    markdown, _ = write(tmp_path, answer(hostile, question="# <b>*one*\n\n# two", skipped=(("`", "[x](y)"),)))
    assert markdown.startswith("# \\# \\<b\\>\\*one\\* \\# two\n")
    assert "\n`````text\n```\n# not a heading\n````\n`````\n" in markdown
    assert "```/data/`a` `` b:3-5```, score" in markdown
    assert "- `` ` ``: \\[x\\]\\(y\\)" in markdown


def test_control_characters_are_shown_as_such(tmp_path: Path) -> None:
    markdown, page = write(tmp_path, answer(found(text="\x1b[31m cancel\ttab\x00\ud800")))
    for text in (markdown, page.text):
        assert "\N{REPLACEMENT CHARACTER}[31m cancel\ttab\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}" in text


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    _, page = write(tmp_path, answer(found()))
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    html = (tmp_path / "runs" / "1" / "report.html").read_text()
    assert "default-src 'none'" in html
    assert not re.search(r"url\(|@import|https?:", html)


def test_only_its_user_can_open_the_folder(tmp_path: Path) -> None:
    write(tmp_path, answer())
    assert stat.S_IMODE((tmp_path / "runs" / "1").stat().st_mode) == 0o700


def test_writing_again_replaces_the_files_and_leaves_no_others(tmp_path: Path) -> None:
    write(tmp_path, answer())
    markdown, _ = write(tmp_path, answer(found()))
    assert "to cancel a Task" in markdown
    assert sorted(path.name for path in (tmp_path / "runs" / "1").iterdir()) == ["report.html", "report.md"]


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = write(tmp_path, answer())

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, answer(found()))
    assert (tmp_path / "runs" / "1" / "report.md").read_text() == before
    assert sorted(path.name for path in (tmp_path / "runs" / "1").iterdir()) == ["report.html", "report.md"]
