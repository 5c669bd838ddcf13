"""The text of a file, with its line numbers: plain text, source code, Markdown, HTML, PDF."""

from __future__ import annotations

import codecs
import io
import logging
import os
import stat
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from celery.exceptions import SoftTimeLimitExceeded

from agentlink.units import format_duration, format_size
from tasks.files import MAX_PDF_BYTES, MAX_TEXT_BYTES, reason_of
from tasks.html_text import without_markup

# Far more than the largest manuals have and take.
MAX_PDF_CHARACTERS = 20_000_000
MAX_PDF_TIME_S = 300.0

# Binary files show a NUL byte this early; tools like grep and git look as far.
_PROBE_BYTES = 8192
_PDF_MARK = b"%PDF-"
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_HTML_SUFFIXES = (".html", ".htm", ".xhtml")


class Page(NamedTuple):
    """Lines of a document. Only PDFs have more than one page and numbers for them."""

    number: int | None
    lines: list[str]


class Unreadable(Exception):
    """A file has no text to search; the argument says why, as a person would read it."""


def read_pages(path: str) -> list[Page]:
    """The text of a file, as numbered lines: one page, or the pages of a PDF.

    UTF-8 and UTF-16 are told by their byte order mark or by being valid; any other text is taken for Windows-1252, in
    which at least the ASCII words and the line numbers are right. HTML keeps its line numbers and loses its tags.

    Raises:
        Unreadable: the file has vanished, is binary, too large, encrypted or broken.
    """
    data = _load(path)
    return _pdf_pages(data) if data.startswith(_PDF_MARK) else [_text_page(path, data)]


def read_page(path: str, index: int) -> Page:
    """One of the pages of `read_pages`, without the work for the others.

    Raises:
        Unreadable: as `read_pages`, or there is no such page any more.
    """
    data = _load(path)
    return _pdf_pages(data, only=index)[0] if data.startswith(_PDF_MARK) else _text_page(path, data)


def _load(path: str) -> bytes:
    try:
        with open(path, "rb", opener=_open_regular) as file:
            # None: one of the kernel's own files, that has nothing to give now.
            start = file.read(_PROBE_BYTES) or b""
            limit_bytes = _limit_bytes(start)
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes > limit_bytes:
                size, limit = format_size(size_bytes), format_size(limit_bytes)
                raise Unreadable(f"too large: {size}, at most {limit} are read")
            # Whatever the size said: a log may grow, and files under /proc have no size and may never end.
            data = start + (file.read(limit_bytes + 1 - len(start)) or b"")
    except FileNotFoundError:
        raise Unreadable("vanished while being searched") from None
    except OSError as error:
        raise Unreadable(reason_of(error)) from None
    if len(data) > limit_bytes:
        raise Unreadable(f"too large: more than {format_size(limit_bytes)}, and growing")
    return data


def _open_regular(path: str, flags: int) -> int:
    """Opens without waiting: a pipe put in the place of a listed file must not block."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Unreadable("not a file any more")
    return descriptor


def _limit_bytes(start: bytes) -> int:
    is_pdf = start.startswith(_PDF_MARK)
    if not is_pdf and b"\0" in start and not start.startswith(_UTF16_MARKS):
        raise Unreadable("binary")
    return MAX_PDF_BYTES if is_pdf else MAX_TEXT_BYTES


def _decode(data: bytes) -> str:
    if data.startswith(_UTF16_MARKS):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _text_page(path: str, data: bytes) -> Page:
    text = _decode(data).replace("\r\n", "\n").replace("\r", "\n")
    lines = without_markup(text) if path.lower().endswith(_HTML_SUFFIXES) else text.split("\n")
    if not text or text.endswith("\n"):  # what follows the last line's end is not a line
        lines.pop()
    return Page(None, lines)


def _pdf_pages(data: bytes, only: int | None = None) -> list[Page]:
    import pypdf  # takes a tenth of a second, and most searches meet no PDF

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it reports every oddity of a file it then reads well
    budget = _PdfBudget()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader = pypdf.PdfReader(io.BytesIO(data))
            # Many files are encrypted with an empty password, only to forbid printing.
            locked = reader.is_encrypted and not reader.decrypt("")
            numbers = [] if locked else [n for n in range(len(reader.pages)) if only in (None, n)]
            texts = {number: budget.text_of(reader.pages[number]) for number in numbers}
    except (SoftTimeLimitExceeded, MemoryError, Unreadable):
        raise
    except Exception as error:  # noqa: BLE001 - pypdf raises whatever a broken file makes it stumble over
        raise Unreadable(f"PDF can't be read: {type(error).__name__}: {str(error)[:200]}") from None
    if locked:
        raise Unreadable("encrypted PDF")
    if not any(text.strip() for text in texts.values()):
        raise Unreadable("PDF without text; scanned pages are not recognised")
    # Fonts with broken tables yield lone surrogates, which no file or message could hold.
    return [Page(number + 1, text.encode("utf-8", "replace").decode().split("\n")) for number, text in texts.items()]


class _PdfBudget:
    """What one PDF may take: a few kilobytes can ask for years of work and terabytes of text.

    pypdf bounds what one stream of drawing commands costs, to seconds. But all pages may share a stream, and a page may
    draw the same form, a stream of its own, thousands of times.
    """

    def __init__(self) -> None:
        self._started_at = time.thread_time()  # of this thread alone: a busy machine makes no file too complex
        self._characters = 0
        self._stopped_by: SoftTimeLimitExceeded | Unreadable | None = None

    def text_of(self, page: Any) -> str:
        """The text of a page.

        Raises:
            Unreadable: the budget is spent.
        """
        characters_before = self._characters
        page.extract_xform_text = partial(self._draw, page.extract_xform_text)
        text: str = page.extract_text()
        if self._stopped_by is not None:  # pypdf goes on without a form, whatever it fails for
            raise self._stopped_by
        self._characters = characters_before + len(text)
        self._check()
        return text

    def _draw(self, draw_form: Callable[..., str], *args: Any, **kwargs: Any) -> str:
        try:
            self._check()
            text = draw_form(*args, **kwargs)
        except (SoftTimeLimitExceeded, Unreadable) as error:
            self._stopped_by = error
            raise
        self._characters += len(text)
        return text

    def _check(self) -> None:
        if self._stopped_by is not None:
            raise self._stopped_by
        if self._characters > MAX_PDF_CHARACTERS:
            raise Unreadable(f"PDF too large: more than {MAX_PDF_CHARACTERS:,} characters of text")
        if time.thread_time() - self._started_at > MAX_PDF_TIME_S:
            raise Unreadable(f"PDF too complex: not read within {format_duration(MAX_PDF_TIME_S)}")
