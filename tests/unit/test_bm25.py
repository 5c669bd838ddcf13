"""The ranking: textbook BM25 over the whole collection, however it was cut into batches."""

from __future__ import annotations

import json
import random
from pathlib import Path

import bm25s
import numpy as np
import pytest

from tasks.bm25 import Answer, rank
from tasks.documents import read_pages
from tasks.passages import path_words, scan, split
from tasks.words import question_terms, term, words

VOCABULARY = ["task", "tasks", "cancel", "cancelled", "asyncio", "loop", "event", "Future", "the", "a"]
QUESTION = "how does asyncio cancel a task?"


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    """Sixty files of a few passages each, always the same."""
    chance = random.Random(7)
    names = [f"{chance.choice(VOCABULARY)}{number:02}.txt" for number in range(60)]
    for name in names:
        blocks = ["\n".join(chance.choices(VOCABULARY, k=chance.randint(4, 15))) for _ in range(chance.randint(1, 9))]
        (tmp_path / name).write_text("\n\n\n".join(blocks))
    return names


def answer(folder: Path, batches: list[list[str]], question: str = QUESTION, top: int = 8) -> Answer:
    """As over the broker: each batch's counts travel as JSON."""
    scans = [json.loads(json.dumps(scan({str(folder): batch}, question, top))) for batch in batches]
    return rank(scans, question, top=top)


def test_scores_are_those_of_an_independent_implementation(tmp_path: Path, names: list[str]) -> None:
    places, corpus = [], []
    for name in sorted(names):
        for passage in split(read_pages(str(tmp_path / name))[0].lines):
            places.append((name, passage.first_line))
            corpus.append([term(word) for word in words(passage.text) + path_words(name)])
    reference = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    reference.index(corpus, show_progress=False)
    expected = np.asarray(reference.get_scores(question_terms(QUESTION)))

    found = answer(tmp_path, [names[:30], names[30:]], top=1000)
    scores = {(entry["name"], entry["first_line"]): entry["score"] for entry in found["passages"]}
    assert found["passages_searched"] == len(corpus) > 200
    assert len(scores) == np.count_nonzero(expected) > 100
    for place, score in zip(places, expected, strict=True):
        assert scores.get(place, 0.0) == pytest.approx(score, rel=1e-5)


@pytest.mark.parametrize("size", [1, 7, 60])
def test_the_answer_does_not_depend_on_the_batches(tmp_path: Path, names: list[str], size: int) -> None:
    shuffled = random.Random(size).sample(names, len(names))
    batches = [shuffled[at : at + size] for at in range(0, len(shuffled), size)]
    assert answer(tmp_path, batches) == answer(tmp_path, [sorted(names)])


def test_equal_scores_are_ordered_by_file_and_line(tmp_path: Path) -> None:
    block = "cancel a task\n.\n.\n.\n"
    for name in ("b.txt", "a.txt", "c.txt"):
        (tmp_path / name).write_text(block + "\n\n" + block)
    found = answer(tmp_path, [["c.txt"], ["b.txt", "a.txt"]], top=5)
    assert len({entry["score"] for entry in found["passages"]}) == 1
    assert [(entry["name"], entry["first_line"]) for entry in found["passages"]] == [
        ("a.txt", 1), ("a.txt", 7), ("b.txt", 1), ("b.txt", 7), ("c.txt", 1),
    ]  # fmt: skip


def test_a_passage_comes_with_its_place_and_text(tmp_path: Path) -> None:
    (tmp_path / "f.md").write_text("# Tasks\n\nCall cancel().\n")
    assert answer(tmp_path, [["f.md"]])["passages"] == [
        {
            "file": str(tmp_path / "f.md"),
            "name": "f.md",
            "page": None,
            "first_line": 1,
            "last_line": 3,
            "score": pytest.approx(2 * 0.28768 * 1 / (1 + 1.5), rel=1e-4),
            "text": "# Tasks\n\nCall cancel().",
        }
    ]


def test_a_file_changed_meanwhile_is_named_and_the_next_passage_moves_up(tmp_path: Path) -> None:
    (tmp_path / "best.txt").write_text("cancel the asyncio task")
    (tmp_path / "next.txt").write_text("cancel the other thing")
    scans = [scan({str(tmp_path): ["best.txt", "next.txt"]}, QUESTION, 1)]
    (tmp_path / "best.txt").write_text("something else")
    found = rank(scans, QUESTION, top=1)
    assert [entry["name"] for entry in found["passages"]] == ["next.txt"]
    assert found["skipped"] == [{"path": str(tmp_path / "best.txt"), "reason": "changed while it was searched"}]


def test_no_match_and_no_file_are_answers_that_say_so(tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_text("nothing of the kind")
    assert answer(tmp_path, [["f.txt"]])["note"] == "No passage has a word of the question in it."
    (tmp_path / "f.txt").write_text("")
    assert answer(tmp_path, [["f.txt"]])["note"] == "No passage has a word of the question in it."
    assert answer(tmp_path, [[]])["note"] == "There was no file to search."
    assert answer(tmp_path, [[]])["passages"] == []
