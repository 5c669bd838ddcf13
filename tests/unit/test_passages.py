"""Passages with their lines, and what a batch of files contributes to a ranking."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import passages
from tasks.bm25 import Collection
from tasks.passages import MAX_CHARACTERS, MAX_LINES, PATH_WEIGHT, Candidate, path_words, read_again, scan, split
from tasks.words import words


class TestSplit:
    def test_joins_blocks_as_long_as_they_fit(self) -> None:
        block = ["text"] * 8
        found = split(["", *block, "", *block, "  ", *block, "", ""])
        assert [(passage.first_line, passage.last_line) for passage in found] == [(2, 18), (20, 27)]
        assert found[0].text == "\n".join([*block, "", *block])

    def test_two_blank_lines_end_a_passage(self) -> None:
        """Unless it is a mere heading."""
        lines = ["# Title", "", "", "def f():", "    a", "", "    b", "    c", "", "", "def g():", "    d"]
        assert [(passage.first_line, passage.last_line) for passage in split(lines)] == [(1, 8), (11, 12)]

    def test_cuts_blocks_that_are_too_long(self) -> None:
        found = split(["x" * 100] * 25 + ["short"] * 21)
        assert [(passage.first_line, passage.last_line) for passage in found] == [(1, 11), (12, 22), (23, 42), (43, 46)]

    def test_cuts_a_line_that_is_too_long_between_words(self) -> None:
        """Minified code and one-line paragraphs; all pieces have that line's number."""
        line = "word " * 1000
        found = split(["before", "", line])
        assert {(passage.first_line, passage.last_line) for passage in found[1:]} == {(3, 3)}
        assert "".join(passage.text for passage in found[1:]) == line.rstrip()
        assert {piece for passage in found[1:] for piece in passage.text.split()} == {"word"}

    def test_long_blank_lines_do_not_swell_a_passage(self) -> None:
        (passage,) = split(["one", " " * 10_000, "two"])
        assert (passage.last_line, passage.text) == (3, "one\n\ntwo")

    def test_of_nothing_is_nothing(self) -> None:
        assert split([]) == split(["", " \t"]) == []

    @given(st.lists(st.sampled_from(["", "", "  ", "word", "two words", "w" * 700, "w" * 3000]), max_size=80))
    def test_keeps_every_line_that_is_not_blank_once_and_in_place(self, lines: list[str]) -> None:
        found = split(lines)
        for passage in found:
            assert len(passage.text) <= MAX_CHARACTERS + MAX_LINES
            assert passage.last_line - passage.first_line < MAX_LINES
            assert passage.text in "\n".join(lines[passage.first_line - 1 : passage.last_line])
        assert "".join("".join(p.text for p in found).split()) == "".join("".join(lines).split())


class TestPathWords:
    def test_share_a_fixed_weight(self) -> None:
        """A short path that is about the question says more than a long one that mentions it."""
        assert path_words("asyncio/tasks.py").count("asyncio") == PATH_WEIGHT // 2
        assert path_words("test/test_asyncio/test_tasks.py").count("asyncio") == PATH_WEIGHT // 6 + 1

    def test_are_all_there_in_a_long_path(self) -> None:
        assert path_words("/".join(f"d{number}" for number in range(30))) == [f"d{number}" for number in range(30)]

    def test_may_be_none(self) -> None:
        assert path_words("___.txt") == []


class TestScan:
    def test_counts_the_words_of_the_question(self, tmp_path: Path) -> None:
        (tmp_path / "f.txt").write_text("# Cancelling\n\nTo cancel tasks, call Task.cancel().\n")
        (tmp_path / "other.txt").write_text("Nothing to see.\n")
        counted = scan({str(tmp_path): ["f.txt", "other.txt"]}, "how is a task cancelled?", keep=8)
        assert counted["files"] == counted["passages"] == 2
        assert counted["frequencies"] == [1, 1]
        assert counted["length"] == 7 + 3 + 2 * PATH_WEIGHT
        assert counted["sources"] == [(str(tmp_path / "f.txt"), "f.txt")]
        assert counted["candidates"] == [Candidate(0, 0, 0, 1, 3, 7 + PATH_WEIGHT, [2, 3])]

    def test_names_files_without_text(self, tmp_path: Path) -> None:
        (tmp_path / "f.bin").write_bytes(b"\0")
        counted = scan({str(tmp_path): ["f.bin", "gone"]}, "task", keep=8)
        assert counted["files"] == 0
        assert [tuple(entry) for entry in counted["skipped"]] == [
            (str(tmp_path / "f.bin"), "binary"),
            (str(tmp_path / "gone"), "vanished while being searched"),
        ]

    @pytest.mark.parametrize("keep", [1, 3])
    def test_keeps_all_that_can_be_best_in_any_collection(self, tmp_path: Path, keep: int) -> None:
        """Scores depend on the whole collection; what a batch leaves out must not be missed in any of them."""
        texts = [f"{'red ' * (n % 3)}{'blue ' * (n % 4)}{'filler ' * (n % 7)}" for n in range(200)]
        (tmp_path / "f.txt").write_text("\n\n\n\n".join(f"{text}\n." * 4 for text in texts))
        whole, kept = (scan({str(tmp_path): ["f.txt"]}, "red blue", keep=k)["candidates"] for k in (10**6, keep))
        assert len(kept) < len(whole) / 2
        for frequencies, length in (((1, 190), 100), ((190, 1), 10**6), ((100, 100), 3000)):
            collection = Collection(passages=200, length=length, frequencies=frequencies)
            best = [
                sorted((-collection.score(collection.weights(), c.length, c.counts), c) for c in candidates)[:keep]
                for candidates in (whole, kept)
            ]
            assert best[0] == best[1]

    def test_is_small_enough_for_a_message(self, tmp_path: Path) -> None:
        (tmp_path / "f.txt").write_text("\n\n\n\n".join(f"red {n}\n.\n.\n." for n in range(5000)))
        counted = scan({str(tmp_path): ["f.txt"]}, "red", keep=8)
        assert counted["passages"] == 5000
        assert len(json.dumps(counted)) < 1000


class TestReadAgain:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        file = tmp_path / "f.txt"
        file.write_text("one two\n\n\n\n" + "three\n" * 30)
        return file

    def find(self, file: Path) -> Candidate:
        return scan({str(file.parent): [file.name]}, "three", keep=8)["candidates"][0]

    def test_gives_the_text_that_was_counted(self, file: Path) -> None:
        assert read_again(str(file), file.name, self.find(file)) == (None, "\n".join(["three"] * 20))

    @pytest.mark.parametrize("change", ["", "one two three", "\n\n\nother text of some length\n" * 9])
    def test_gives_nothing_when_the_file_has_changed(self, file: Path, change: str) -> None:
        candidate = self.find(file)
        file.write_text(change)
        assert read_again(str(file), file.name, candidate) is None

    def test_gives_nothing_when_the_file_has_gone(self, file: Path) -> None:
        candidate = self.find(file)
        file.unlink()
        assert read_again(str(file), file.name, candidate) is None


def test_each_distinct_word_is_folded_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What keeps a scan of millions of words quick."""
    folded: list[str] = []
    really_fold = passages.term
    monkeypatch.setattr(passages, "term", lambda word: folded.append(word) or really_fold(word))
    text = "alpha beta alpha Beta\n" * 50
    (tmp_path / "f.txt").write_text(text)
    scan({str(tmp_path): ["f.txt"]}, "alpha", keep=8)
    assert sorted(folded) == sorted({*words(text), "f"})
