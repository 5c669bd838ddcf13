"""The text of files of all kinds, with its line numbers."""

from __future__ import annotations

import io
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pypdf
import pytest
from celery.exceptions import SoftTimeLimitExceeded
from fpdf import FPDF
from pypdf.generic import DictionaryObject, NameObject, StreamObject

from tasks import documents
from tasks.documents import Page, Unreadable, read_page, read_pages
from tasks.files import MAX_PDF_BYTES, MAX_TEXT_BYTES

Write = Callable[[str, bytes], str]
FONT = DictionaryObject(
    {
        NameObject("/Type"): NameObject("/Font"),
        NameObject("/Subtype"): NameObject("/Type1"),
        NameObject("/BaseFont"): NameObject("/Helvetica"),
    }
)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, data: bytes) -> str:
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return write


def pdf_of_forms(*, draws: int, texts_each: int) -> bytes:
    """A PDF of one page that draws one form, a drawing of its own with texts, many times."""
    writer = pypdf.PdfWriter()
    page = writer.add_blank_page(100, 100)
    fonts = DictionaryObject({NameObject("/Font"): DictionaryObject({NameObject("/F"): FONT})})
    form = StreamObject()
    form.set_data(b"BT /F 12 Tf\n" + b"(a)Tj\n" * texts_each + b"ET")
    form[NameObject("/Subtype")] = NameObject("/Form")
    form[NameObject("/Resources")] = fonts
    forms = DictionaryObject({NameObject("/X"): writer._add_object(form.flate_encode())})
    page[NameObject("/Resources")] = DictionaryObject({NameObject("/XObject"): forms})
    content = StreamObject()
    content.set_data(b"/X Do\n" * draws)
    page[NameObject("/Contents")] = writer._add_object(content.flate_encode())
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def lines(path: str) -> list[str]:
    (page,) = read_pages(path)
    return page.lines


class TestText:
    @pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
    def test_is_decoded(self, write: Write, codec: str) -> None:
        assert lines(write("f.txt", "Größe\n“a”\n".encode(codec))) == ["Größe", "“a”"]

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_has_the_lines_that_editors_count(self, write: Write, end: str) -> None:
        """A form feed or a Unicode line separator starts no line."""
        text = end.join(["one\fstill one", "", "three\u2028still three", ""])
        assert lines(write("f.txt", text.encode())) == ["one\fstill one", "", "three\u2028still three"]

    def test_may_be_empty(self, write: Write) -> None:
        assert lines(write("f.txt", b"")) == []

    def test_of_bytes_that_are_no_text_is_refused(self, write: Write) -> None:
        with pytest.raises(Unreadable, match=r"^binary$"):
            read_pages(write("f.txt", b"ELF\0\1"))

    def test_that_is_too_large_is_refused_before_it_is_read(self, write: Write) -> None:
        text, pdf = write("f.txt", b"text"), write("f.pdf", b"%PDF-1.7")
        os.truncate(text, MAX_TEXT_BYTES + 1)
        with pytest.raises(Unreadable, match="binary"):  # a file of zeros, in fact
            read_pages(text)
        with pytest.raises(Unreadable, match=r"too large: 5\.5 MB, at most 5 MB are read"):
            read_pages(write("g.txt", b"text " * 1_100_000))
        os.truncate(pdf, MAX_PDF_BYTES + 1)
        with pytest.raises(Unreadable, match="too large: 50 MB, at most 50 MB are read"):
            read_pages(pdf)

    def test_that_grows_while_it_is_read_has_an_end(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        """So do files under /proc that never end: whatever the size, no more is read than may be searched."""
        path = write("f.log", b"text " * 1_100_000)
        monkeypatch.setattr(os, "fstat", lambda _: os.stat_result([stat.S_IFREG, *[0] * 9]))
        with pytest.raises(Unreadable, match=r"^too large: more than 5 MB, and growing$"):
            read_pages(path)

    def test_that_a_file_of_the_kernel_has_not_got_now_is_not_waited_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        os.mkfifo(tmp_path / "kmsg")
        monkeypatch.setattr(stat, "S_ISREG", lambda _: True)
        with (tmp_path / "kmsg").open("r+b", buffering=0):
            assert lines(str(tmp_path / "kmsg")) == []

    def test_that_has_gone_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(Unreadable, match="vanished"):
            read_pages(str(tmp_path / "gone.txt"))

    def test_replaced_by_a_pipe_does_not_block(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "f.txt")
        with pytest.raises(Unreadable, match="not a file any more"):
            read_pages(str(tmp_path / "f.txt"))


class TestHtml:
    def test_loses_its_tags_and_keeps_its_lines(self, write: Write) -> None:
        html = """<!DOCTYPE html><title>T &amp; U</title>
<script>
var hidden = "<p>";
</script>
<p>one<b>word</b>
and <td>two</td><td>cells</td>
<!-- a
comment --><style>p { }</style>end &lt;tag&gt;
"""
        assert lines(write("f.html", html.encode())) == [
            "T & U", "", "", "", "oneword", "and two cells", "", "end <tag>",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        "html", ["", "<", "<p", "</p", "<!--", "<script>", "&#10;&#10;&#10;", "<p>a&#10;b", "&#xD800;"]
    )
    def test_may_be_broken(self, write: Write, html: str) -> None:
        assert len(lines(write("f.html", html.encode()))) == (1 if html else 0)


class TestPdf:
    @staticmethod
    def pdf(*pages: list[str]) -> FPDF:
        document = FPDF()
        document.set_font("helvetica", size=12)
        for texts in pages:
            document.add_page()
            for number, text in enumerate(texts):
                document.text(20, 20 + 10 * number, text)
        return document

    def test_has_numbered_pages_of_lines(self, write: Write) -> None:
        path = write("f.pdf", bytes(self.pdf(["first line", "second line"], [], ["third page"]).output()))
        assert read_pages(path) == [Page(1, ["first line", "second line"]), Page(2, [""]), Page(3, ["third page"])]

    def test_gives_one_page_without_the_others(self, write: Write) -> None:
        path = write("f.pdf", bytes(self.pdf(["one"], ["two"]).output()))
        assert read_page(path, 1) == Page(2, ["two"])
        with pytest.raises(Unreadable):
            read_page(path, 2)

    def test_is_known_by_its_content(self, write: Write) -> None:
        assert read_pages(write("f.txt", bytes(self.pdf(["inside"]).output())))[0].lines == ["inside"]

    def test_that_needs_a_password_is_named(self, write: Write) -> None:
        document = self.pdf(["secret"])
        document.set_encryption(owner_password="owner", user_password="user")
        with pytest.raises(Unreadable, match=r"^encrypted PDF$"):
            read_pages(write("f.pdf", bytes(document.output())))

    def test_that_only_forbids_printing_is_read(self, write: Write) -> None:
        document = self.pdf(["open"])
        document.set_encryption(owner_password="owner")
        assert read_pages(write("f.pdf", bytes(document.output())))[0].lines == ["open"]

    def test_without_text_is_named(self, write: Write) -> None:
        with pytest.raises(Unreadable, match="without text"):
            read_pages(write("f.pdf", bytes(self.pdf([]).output())))

    @pytest.mark.timeout(20)
    def test_that_draws_a_form_without_end_is_given_up(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        """Less than a kilobyte, and hours of work: a page that draws the same long text 5,000 times."""
        monkeypatch.setattr(documents, "MAX_PDF_TIME_S", 0.1)
        with pytest.raises(Unreadable, match="PDF too complex: not read within 100 ms"):
            read_pages(write("f.pdf", pdf_of_forms(draws=5000, texts_each=10_000)))

    def test_with_more_text_than_memory_is_given_up(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write("f.pdf", pdf_of_forms(draws=5000, texts_each=10))
        assert len(read_pages(path)[0].lines) > 1
        monkeypatch.setattr(documents, "MAX_PDF_CHARACTERS", 20)
        drawn: list[object] = []
        really_draw = pypdf.PageObject.extract_xform_text
        monkeypatch.setattr(
            pypdf.PageObject,
            "extract_xform_text",
            lambda *args, **kwargs: drawn.append(args) or really_draw(*args, **kwargs),
        )
        with pytest.raises(Unreadable, match="PDF too large: more than 20 characters of text"):
            read_pages(path)
        assert len(drawn) < 5

    def test_that_meets_the_soft_time_limit_does_not_outlast_it(
        self, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """pypdf takes whatever is raised while it draws a form for a fault of the form, and goes on."""
        drawn: list[object] = []

        def run_out_of_time(*args: object, **_: object) -> str:
            drawn.append(args)
            raise SoftTimeLimitExceeded

        monkeypatch.setattr(pypdf.PageObject, "extract_xform_text", run_out_of_time)
        with pytest.raises(SoftTimeLimitExceeded):
            read_pages(write("f.pdf", pdf_of_forms(draws=5000, texts_each=10)))
        assert len(drawn) == 1

    def test_that_is_broken_is_named_and_nothing_is_logged(
        self, write: Write, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
    ) -> None:
        data = bytes(self.pdf(["text"]).output())
        with caplog.at_level(logging.DEBUG, logger="root"):
            for number, broken in enumerate([data[:20], data[: len(data) // 2], b"%PDF-" + b"\xff" * 500]):
                with pytest.raises(Unreadable, match="PDF"):
                    read_pages(write(f"{number}.pdf", broken))
        assert caplog.records == []
        assert capfd.readouterr() == ("", "")
