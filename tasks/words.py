"""The words of texts and questions, and which of them count as the same.

A word is a run of letters and digits. Identifiers are split where `_`, a dot or a capital letter splits them, so that
"cancel a task" finds `Task.cancel` and `cancelTask`; Chinese and Japanese characters are a word each. Case and the
endings that English adds (-s, -ing, -ed, a silent -e, a doubled consonant) do not count: "Cancelled" is "cancel".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# One alternative a kind: HTTP or URLs (not the H of Http), a word with its digits, a lone capital, a number.
_ASCII_WORD = re.compile(r"[A-Z]{2,}[0-9]*s?(?![a-z])|[A-Z]?[a-z]+[0-9]*|[A-Z]|[0-9]+")
_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_ANY_WORD = re.compile(f"[{_IDEOGRAPH}]|[^\\W_{_IDEOGRAPH}]+")

_VOWEL = re.compile("[aeiouy]")

# Words that say how something is asked, not what about.
_STOP_WORDS = frozenset(
    """a about am an and any are as at be been by can could did do does for from had has have how i if in into is it its
    me my of on or our shall should so than that the their them then there these they this those to us was we were what
    when where which who whom whose why will with would you your s t don doesn isn""".split()  # noqa: SIM905
)


def words(text: str) -> list[str]:
    """The words of a text, as written; `term` says which of them count as the same."""
    if text.isascii():
        return _ASCII_WORD.findall(text)
    found: list[str] = []
    for word in _ANY_WORD.findall(unicodedata.normalize("NFKC", text)):
        found += _ASCII_WORD.findall(word) if word.isascii() else [word]
    return found


def term(word: str) -> str:
    """What a word counts as: lower case, without the endings of English grammar."""
    stem = word.lower()
    if len(stem) < 4 or not stem.isascii():
        return stem
    if stem.endswith(("ies", "ied")):
        stem = stem[:-3] + "y"
    elif stem.endswith(("sses", "xes", "ches", "shes")):
        stem = stem[:-2]
    elif stem.endswith("s") and not stem.endswith(("ss", "us", "is")):
        stem = stem[:-1]
    for ending in ("ing", "ed"):
        bare = stem.removesuffix(ending)
        if bare != stem and len(bare) > 2 and _VOWEL.search(bare) and not stem.endswith("eed"):
            stem = bare
            break
    if len(stem) > 3 and stem[-1] == "e":
        stem = stem[:-1]
    if len(stem) > 3 and stem[-1] == stem[-2]:
        stem = stem[:-1]
    return stem


def question_terms(question: str) -> list[str]:
    """The terms of a question, each once; words like "how" and "the" only if there are no others."""
    asked = words(question)
    telling = [word for word in asked if word.lower() not in _STOP_WORDS]
    return list(dict.fromkeys(term(word) for word in telling or asked))


def marked(text: str, terms: Iterable[str]) -> list[tuple[str, bool]]:
    """A text in pieces, with whether each is a word that counts as one of `terms`; together they are the text."""
    wanted = set(terms)
    pieces: list[tuple[str, bool]] = []
    end = 0
    for match in (_ASCII_WORD if text.isascii() else _ANY_WORD).finditer(text):
        if term(match[0]) in wanted:
            pieces += [(text[end : match.start()], False), (match[0], True)]
            end = match.end()
    return [piece for piece in [*pieces, (text[end:], False)] if piece[0]]
