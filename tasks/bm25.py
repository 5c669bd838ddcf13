"""Rank passages by Okapi BM25 over a whole collection that was counted in batches.

A passage scores, for each term of the question, `idf * tf / (tf + k1 * (1 - b + b * length / average length))`, where
tf is how often the term is in it and idf is `ln(1 + (N - n + 0.5) / (n + 0.5))` for a term in n of N passages: Lucene's
variant. N, n and the average length are those of all batches together, so the batches do not show in the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

from tasks.files import Skipped
from tasks.passages import Candidate, Scan, read_again
from tasks.words import question_terms

K1 = 1.5
B = 0.75


@dataclass(frozen=True, kw_only=True)
class Collection:
    """What a score depends on besides the passage itself."""

    passages: int
    length: int
    frequencies: tuple[int, ...]

    @classmethod
    def merge(cls, scans: Sequence[Scan], terms: int) -> Collection:
        """All batches as one collection."""
        return cls(
            passages=sum(scan["passages"] for scan in scans),
            length=sum(scan["length"] for scan in scans),
            frequencies=tuple(sum(scan["frequencies"][term] for scan in scans) for term in range(terms)),
        )

    def weights(self) -> list[float]:
        """How telling each term is: the rarer, the more."""
        return [math.log(1 + (self.passages - n + 0.5) / (n + 0.5)) for n in self.frequencies]

    def score(self, weights: Sequence[float], length: int, counts: Sequence[int]) -> float:
        """The BM25 score of a passage of `length` words that has each term as often as `counts` says."""
        long = K1 * (1 - B + B * length * self.passages / self.length)
        return sum(weight * count / (count + long) for weight, count in zip(weights, counts, strict=True))


class Found(TypedDict):
    """A passage of the answer. `name` is the file's path below the path searched; only PDFs have a page."""

    file: str
    name: str
    page: int | None
    first_line: int
    last_line: int
    score: float
    text: str


class Answer(TypedDict):
    """The best passages, what they were chosen from, what was not searched and why; `note` says why there are none."""

    question: str
    terms: list[str]
    passages: list[Found]
    note: str | None
    files: int
    passages_searched: int
    skipped: list[dict[str, str]]


class Ranked(NamedTuple):
    """Sorts best first; passages of the same score by file and place, so that an answer is always the same."""

    negative_score: float
    path: str
    place: tuple[int, int, int, int]
    name: str
    candidate: Candidate


def rank(scans: Sequence[Scan], question: str, *, top: int) -> Answer:
    """The `top` passages of all batches, best first, with their text read again.

    A file that has changed since it was counted is named among the skipped ones, and the next best passage moves up.
    """
    terms = question_terms(question)
    skipped = [Skipped(*entry) for scan in scans for entry in scan["skipped"]]
    passages: list[Found] = []
    changed: set[str] = set()
    for ranked in sorted(_ranked(scans, Collection.merge(scans, len(terms)))):
        if len(passages) == top:
            break
        if found := _read(ranked):
            passages.append(found)
        else:
            changed.add(ranked.path)
    skipped += [Skipped(path, "changed while it was searched") for path in changed]
    files = sum(scan["files"] for scan in scans)
    return Answer(
        question=question,
        terms=terms,
        passages=passages,
        note=None if passages else _why_nothing(files),
        files=files,
        passages_searched=sum(scan["passages"] for scan in scans),
        skipped=[entry._asdict() for entry in sorted(set(skipped))],
    )


def _ranked(scans: Sequence[Scan], collection: Collection) -> Iterator[Ranked]:
    weights = collection.weights()
    for scan in scans:
        for fields in scan["candidates"]:
            candidate = Candidate(*fields)  # JSON has turned it into a list
            path, name = scan["sources"][candidate.source]
            place = (candidate.page, candidate.first_line, candidate.last_line, candidate.passage)
            score = collection.score(weights, candidate.length, candidate.counts)
            yield Ranked(-score, path, place, name, candidate)


def _read(ranked: Ranked) -> Found | None:
    again = read_again(ranked.path, ranked.name, ranked.candidate)
    if again is None:
        return None
    page, text = again
    return Found(
        file=ranked.path,
        name=ranked.name,
        page=page,
        first_line=ranked.candidate.first_line,
        last_line=ranked.candidate.last_line,
        score=-ranked.negative_score,
        text=text,
    )


def _why_nothing(files: int) -> str:
    return "No passage has a word of the question in it." if files else "There was no file to search."
