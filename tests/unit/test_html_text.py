"""The text of HTML: which parts are text, in which line, and that no markup takes long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.files import MAX_TEXT_BYTES
from tasks.html_text import without_markup


@pytest.mark.parametrize(
    ("html", "lines"),
    [
        ("a<b>b</b>c<p>d</p>e<br>f", ["abc d e f"]),
        ('<a title="x > y" href=z>text</a>', ["text"]),
        ("<a title = 'x > y'>text</a>", ["text"]),
        ("<p it's a name, no quote>text", ["text"]),
        ("<P\nid=1\n>text", ["", "", "text"]),
        ("a<!-- b\n<p> -- > c -->d", ["a", "d"]),
        ("a<!-->b<!--->c", ["abc"]),
        ("<!DOCTYPE html><?xml version='1'?></>text</3>", ["text"]),
        ("1 < 2 && 3<4 <- 5", ["1 < 2 && 3<4 <- 5"]),
        ("<script>if (a < b) { '</p>' }</script>c<STYLE>d</Style >e", ["c e"]),
        ("<script src=x />text", ["text"]),
        ("<script>a</scripts>b", [""]),
        ("<template>a<template>b\n</template>c</template>d</template>e", ["", "d e"]),
        ("&lt;p&gt; &amp; &auml;&#228;&#xe4; &nbsp; &unknown; & &", ["<p> & äää &unknown; & &"]),
        ("a&#10;b\nc&NewLine;d", ["a b", "c d"]),
    ],
)
def test_text_is_what_a_reader_of_the_page_sees(html: str, lines: list[str]) -> None:
    assert without_markup(html) == lines


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("a <", "a <"),
        ("a <p", "a <p"),
        ("a <!--b", "a <!--b"),
        ("a <!-- b <p>c", "a c"),
        ("a <p id='b>c", "a c"),
        ("a <p id='><i>b</i>", "a b"),
        ("a <p id='>'", "a '"),
        ("a <script>b", "a"),
    ],
)
def test_markup_without_its_end_ends_at_the_next_bracket_or_is_text(html: str, text: str) -> None:
    assert without_markup(html) == [text]


@given(
    st.lists(
        st.sampled_from(
            [
                "<",
                ">",
                "<!--",
                "-->",
                "<p",
                "</p",
                "<script",
                "</script",
                "<template>",
                "'",
                '"',
                "=",
                "/",
                " ",
                "\n",
                "x",
            ]
        )
    ).map("".join)
)
def test_every_line_stays_where_it_is(html: str) -> None:
    assert len(without_markup(html)) == html.count("\n") + 1


@pytest.mark.timeout(20)  # a parser that starts over takes hours
@pytest.mark.parametrize("end", ["", '=">"'])
@pytest.mark.parametrize(
    "start", ["<a ", "<a b='", "<!--", "<", "<!", "</", "<a>", "<a b=", "<script>", "<template>", "&", "&#1", "<br>\n"]
)
def test_megabytes_of_markup_take_one_pass(start: str, end: str) -> None:
    html = start * (MAX_TEXT_BYTES // len(start)) + end
    assert len(without_markup(html)) == html.count("\n") + 1


def test_a_reference_with_a_number_too_long_for_python_is_a_damaged_character() -> None:
    assert without_markup("a&#" + "1" * 5000 + ";b &#x" + "f" * 5000) == ["a\ufffdb \ufffd"]
