"""Passages of a document, and what a ranking needs to know about each.

A passage is a few blocks of text, as blank lines separate them: at most 20 lines, about 1,200 characters, one page of a
PDF; two blank lines in a row end it if it has four lines. Its words are those of its text and those of its file's path
below the folder searched: `asyncio/tasks.py` is about asyncio and tasks even where the text does not say so.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypedDict

from tasks.documents import Page, Unreadable, read_page, read_pages
from tasks.files import Skipped
from tasks.words import question_terms, term, words

MIN_LINES = 4
MAX_LINES = 20
MAX_CHARACTERS = 1200
# The path of a file says as much about each of its passages as a line or two of text. Its words share that weight, so
# that `asyncio/tasks.py` is more about tasks than `test/test_asyncio/test_tasks.py` is. Between 8 and 20 it hardly
# matters what it is.
PATH_WEIGHT = 16


class Passage(NamedTuple):
    """Lines of one page; numbers count from 1 within it."""

    first_line: int
    last_line: int
    text: str


class Candidate(NamedTuple):
    """A passage with a word of the question in it: how often each, and where to read it again.

    `source` is an index into `Scan["sources"]`, `page` and `passage` count from 0 within the document and the page.
    """

    source: int
    page: int
    passage: int
    first_line: int
    last_line: int
    length: int
    counts: list[int]


class Scan(TypedDict):
    """What one batch of files adds to a ranking, small enough for a message: counts, and no text.

    `frequencies` says in how many passages each term of the question is, `length` how many words all passages have.
    """

    files: int
    passages: int
    length: int
    frequencies: list[int]
    sources: list[tuple[str, str]]
    candidates: list[Candidate]
    skipped: list[Skipped]


def split(lines: Sequence[str]) -> list[Passage]:
    """The passages of a page, in order: blocks of lines, joined as long as they fit."""
    passages: list[Passage] = []
    first = end = size = 0
    for block_first, block_end, block_size in _blocks(lines):
        # Two blank lines set functions and chapters apart; a heading or a line of imports stays with what follows.
        apart = block_first - end >= 2 and end - first >= MIN_LINES
        if size and (apart or block_end - first > MAX_LINES or size + block_size > MAX_CHARACTERS):
            passages += _passages(lines, first, end)
            size = 0
        if not size:
            first = block_first
        end = block_end
        size += block_size
    if size:
        passages += _passages(lines, first, end)
    return passages


def _blocks(lines: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """Runs of lines that are not blank, cut where they get too long: first, end, characters."""
    first = size = 0
    for number, line in enumerate(lines):
        if not line or line.isspace():
            if size:
                yield first, number, size
                size = 0
            continue
        if size and (number - first == MAX_LINES or size + len(line) >= MAX_CHARACTERS):
            yield first, number, size
            size = 0
        if not size:
            first = number
        size += len(line) + 1
    if size:
        yield first, len(lines), size


def _passages(lines: Sequence[str], first: int, end: int) -> Iterator[Passage]:
    """One passage, or several of the same line where a single line is too long (minified code, say)."""
    text = "\n".join(lines[first:end])
    if len(text) > 2 * MAX_CHARACTERS:  # blank lines, which do not count, may be long too
        text = "\n".join(line.rstrip() for line in lines[first:end])
    if end - first > 1:
        yield Passage(first + 1, end, text)
        return
    start = 0
    while len(text) - start > MAX_CHARACTERS:
        # At a space in the second half, or in the midst of a word.
        cut = text.rfind(" ", start + MAX_CHARACTERS // 2, start + MAX_CHARACTERS)
        cut = start + MAX_CHARACTERS if cut < 0 else cut
        yield Passage(first + 1, end, text[start:cut])
        start = cut
    yield Passage(first + 1, end, text[start:])


class _Places(dict[str, int]):
    """Which term of the question a word is, counted from 1; 0 for none. Each distinct word is folded once."""

    def __init__(self, terms: Sequence[str]) -> None:
        super().__init__()
        self._terms = {name: place for place, name in enumerate(terms, start=1)}

    def __missing__(self, word: str) -> int:
        place = self[word] = self._terms.get(term(word), 0)
        return place


def scan(files: Mapping[str, Sequence[str]], question: str, keep: int) -> Scan:
    """Count the words of `question` in every passage of `files`: folders, and names of files below each.

    The candidates are all passages that can be among the `keep` best, whatever the rest of the collection is.
    """
    terms = question_terms(question)
    places = _Places(terms)
    result = Scan(files=0, passages=0, length=0, frequencies=[0] * len(terms), sources=[], candidates=[], skipped=[])
    candidates: list[Candidate] = []
    for folder, name in ((folder, name) for folder, names in files.items() for name in names):
        path = os.path.join(folder, name)  # noqa: PTH118
        try:
            pages = read_pages(path)
        except Unreadable as error:
            result["skipped"].append(Skipped(path, str(error)))
            continue
        result["files"] += 1
        candidates += _count(pages, len(result["sources"]), path_words(name), places, result)
        if candidates and candidates[-1].source == len(result["sources"]):
            result["sources"].append((path, name))
    result["candidates"] = _best(candidates, result["sources"], keep)
    return result


def path_words(name: str) -> list[str]:
    """The words of a path without its suffix, repeated so that together they weigh about `PATH_WEIGHT` words."""
    found = words(os.path.splitext(name)[0])  # noqa: PTH122
    return found * max(1, PATH_WEIGHT // max(1, len(found)))


def _count(
    pages: Sequence[Page], source: int, common: Sequence[str], places: _Places, result: Scan
) -> Iterator[Candidate]:
    """Add the passages of one file to the counts of `result`; yields those with a word of the question in them."""
    frequencies = result["frequencies"]
    every_place = range(1, len(frequencies) + 1)
    common_hits = [place for word in common if (place := places[word])]
    lines_before = 0
    for page_index, page in enumerate(pages):
        passages = split(page.lines)
        for index, passage in enumerate(passages):
            found = words(passage.text)
            length = len(found) + len(common)
            result["length"] += length
            hits = [place for word in found if (place := places[word])] + common_hits
            if not hits:
                continue
            counts = [hits.count(place) for place in every_place]
            for at, count in enumerate(counts):
                frequencies[at] += count > 0
            first, last = lines_before + passage.first_line, lines_before + passage.last_line
            yield Candidate(source, page_index, index, first, last, length, counts)
        result["passages"] += len(passages)
        lines_before += len(page.lines)


def _best(candidates: Iterable[Candidate], sources: Sequence[tuple[str, str]], keep: int) -> list[Candidate]:
    """Scores can't be compared before the whole collection is counted, but of passages with the same counts a shorter
    one never scores less: the first `keep` of each kind are enough. Thousands of passages share a few hundred kinds.
    """
    kinds: defaultdict[tuple[int, ...], list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        kinds[tuple(candidate.counts)].append(candidate)
    return [
        candidate
        for kind in kinds.values()
        for candidate in sorted(kind, key=lambda c: (c.length, sources[c.source][0], c.page, c.passage))[:keep]
    ]


def read_again(path: str, name: str, candidate: Candidate) -> tuple[int | None, str] | None:
    """The page number (of a PDF) and the text of a candidate; None if the file has changed since it was counted."""
    try:
        page = read_page(path, candidate.page)
        text = split(page.lines)[candidate.passage].text
    except (Unreadable, IndexError):
        return None
    unchanged = len(words(text)) + len(path_words(name)) == candidate.length
    return (page.number, text) if unchanged else None
