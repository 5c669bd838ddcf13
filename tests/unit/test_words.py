"""Words, and which of them count as the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.words import marked, question_terms, term, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Task.cancel()", ["Task", "cancel"]),
        ("cancel_all_tasks", ["cancel", "all", "tasks"]),
        ("cancelAllTasks HTTPServer parseURLs", ["cancel", "All", "Tasks", "HTTP", "Server", "parse", "URLs"]),
        ("sha256 UTF8 x86_64 3.11", ["sha256", "UTF8", "x86", "64", "3", "11"]),
        ("naïve café", ["naïve", "café"]),
        ("cafe\u0301", ["café"]),
        ("größeWert getName", ["größeWert", "get", "Name"]),
        ("取消任务 task", ["取", "消", "任", "务", "task"]),
        ("_ -- ***", []),
    ],
)
def test_words_are_split_where_people_see_them(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    "same",
    [
        ["cancel", "Cancel", "cancels", "cancelled", "canceled", "cancelling"],
        ["task", "tasks", "TASKs"],
        ["create", "creates", "created", "creating"],
        ["query", "queries", "queried"],
        ["process", "processes", "processed"],
        ["match", "matches", "matching"],
        ["stop", "stops", "stopped"],
        ["parse", "parsing", "parsed"],
        ["url", "URLs"],
    ],
)
def test_endings_do_not_count(same: list[str]) -> None:
    assert len({term(word) for word in same}) == 1, [term(word) for word in same]


@pytest.mark.parametrize(("one", "other"), [("string", "str"), ("async", "asyncio"), ("need", "ne"), ("is", "i")])
def test_other_words_stay_apart(one: str, other: str) -> None:
    assert term(one) != term(other)


def test_a_question_is_about_its_telling_words_each_once() -> None:
    assert question_terms("How does asyncio cancel a task, and which tasks?") == ["asyncio", "cancel", "task"]


def test_a_question_of_small_words_is_about_those() -> None:
    assert question_terms("what is this?") == ["what", "is", "this"]
    assert question_terms("?!") == []


def test_matches_are_marked_inside_identifiers() -> None:
    assert marked("to_cancel = Tasks()", ["cancel", "task"]) == [
        ("to_", False), ("cancel", True), (" = ", False), ("Tasks", True), ("()", False),
    ]  # fmt: skip


@given(st.text())
def test_marked_pieces_are_the_text(text: str) -> None:
    assert "".join(piece for piece, _ in marked(text, [term(word) for word in words(text)][::2])) == text
