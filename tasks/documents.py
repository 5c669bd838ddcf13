"""The text of a file, with its line numbers: plain text, source code, Markdown, HTML, PDF."""

from __future__ import annotations

import codecs
import io
import logging
import os
import stat
import warnings
from typing import NamedTuple

from celery.exceptions import SoftTimeLimitExceeded

from agentlink.units import format_size
from tasks.files import MAX_PDF_BYTES, MAX_TEXT_BYTES, reason_of

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
            start = file.read(_PROBE_BYTES)
            limit_bytes = _check(start, os.fstat(file.fileno()).st_size)
            return start + (file.read(limit_bytes) or b"")  # None: a device that has nothing to give now
    except FileNotFoundError:
        raise Unreadable("vanished while being searched") from None
    except OSError as error:
        raise Unreadable(reason_of(error)) from None


def _open_regular(path: str, flags: int) -> int:
    """Opens without waiting: a pipe put in the place of a listed file must not block."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Unreadable("not a file any more")
    return descriptor


def _check(start: bytes, size_bytes: int) -> int:
    """How much of a file to read at most, whatever its size says: files under /proc may never end."""
    is_pdf = start.startswith(_PDF_MARK)
    if not is_pdf and b"\0" in start and not start.startswith(_UTF16_MARKS):
        raise Unreadable("binary")
    limit_bytes = MAX_PDF_BYTES if is_pdf else MAX_TEXT_BYTES
    if size_bytes > limit_bytes:
        raise Unreadable(f"too large: {format_size(size_bytes)}, at most {format_size(limit_bytes)} are read")
    return limit_bytes


def _decode(data: bytes) -> str:
    if data.startswith(_UTF16_MARKS):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _text_page(path: str, data: bytes) -> Page:
    # What follows the last line's end is not a line.
    text = _decode(data).replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    if not text:
        return Page(None, [])
    return Page(None, without_markup(text) if path.lower().endswith(_HTML_SUFFIXES) else text.split("\n"))


def _pdf_pages(data: bytes, only: int | None = None) -> list[Page]:
    import pypdf  # takes a tenth of a second, and most searches meet no PDF

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it reports every oddity of a file it then reads well
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader = pypdf.PdfReader(io.BytesIO(data))
            # Many files are encrypted with an empty password, only to forbid printing.
            locked = reader.is_encrypted and not reader.decrypt("")
            numbers = [] if locked else [n for n in range(len(reader.pages)) if only in (None, n)]
            texts = {number: reader.pages[number].extract_text() for number in numbers}
    except (SoftTimeLimitExceeded, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - pypdf raises whatever a broken file makes it stumble over
        raise Unreadable(f"PDF can't be read: {type(error).__name__}: {str(error)[:200]}") from None
    if locked:
        raise Unreadable("encrypted PDF")
    if not any(text.strip() for text in texts.values()):
        raise Unreadable("PDF without text; scanned pages are not recognised")
    # Fonts with broken tables yield lone surrogates, which no file or message could hold.
    return [Page(number + 1, text.encode("utf-8", "replace").decode().split("\n")) for number, text in texts.items()]
