"""The text of HTML, line by line where it stands in the source.

One pass, whatever the markup: the standard library's parser starts over at each tag that does not end, which makes
hours of a few megabytes.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

# A tag, a comment, a declaration or an instruction begins; any other `<` is text.
_MARKUP = re.compile(r"<(?:!--|[!?]|/?([a-zA-Z][^\s/>]*)|/)")
# In a tag: its end, or a value in quotes, in which a `>` ends nothing.
_TAG_END_OR_QUOTE = re.compile(r""">|=\s*["']""")
# Left alone by `html.unescape`, which lets Python refuse a number of so many digits.
_ENDLESS_NUMBER = re.compile(r"&#[0-9]{20,};?")

# What is in them is not HTML.
_RAW_ENDS = {name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in ("script", "style")}
# Tags inside a word or a sentence; every other one ends the word before it.
_INLINE = frozenset(
    "a abbr b bdi bdo cite code dfn em font i kbd mark q s samp small span strong sub sup tt u var wbr".split()  # noqa: SIM905
)


def without_markup(text: str) -> list[str]:
    """The lines of `text` without tags, comments, scripts, styles and templates, with each reference resolved.

    Markup that never ends as it should ends at the next `>`; if there is none, it is text.
    """
    return [_readable(line) for line in "".join(_pieces(text)).split("\n")]


def _readable(line: str) -> str:
    if "&" in line:
        line = html.unescape(_ENDLESS_NUMBER.sub("\N{REPLACEMENT CHARACTER}", line))
    return " ".join(line.split())  # also where a reference stands for the end of a line


def _pieces(text: str) -> Iterator[str]:
    """What is left of `text`; of all that is dropped, the ends of its lines are kept."""
    ends = _Ends(text)
    at = templates = 0
    while (match := _MARKUP.search(text, at)) and match.start() < ends.last:
        start, name = match.start(), (match[1] or "").lower()
        yield text[at:start] if not templates else _line_ends(text, at, start)
        at = ends.of_tag(match.end()) if name else ends.of_comment(start)
        if name and name not in _INLINE:
            yield " "
        if name == "template":
            templates = max(0, templates - 1) if text[start + 1] == "/" else templates + 1
        elif name in _RAW_ENDS and text[start + 1] != "/" and text[at - 2] != "/":
            raw_end = _RAW_ENDS[name].search(text, at)
            at = raw_end.start() if raw_end else len(text)
        yield _line_ends(text, start, at)
    yield text[at:] if not templates else _line_ends(text, at, len(text))


def _line_ends(text: str, start: int, end: int) -> str:
    return "\n" * text.count("\n", start, end)


class _Ends:
    """Where markup ends that begins before the last `>`. What is not found once is not looked for again."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.last = text.rfind(">")
        self._last_comment_end = text.rfind("-->")
        self._quotes_count = True

    def of_comment(self, start: int) -> int:
        """The end of a comment, or of a declaration or an instruction."""
        if self._text.startswith("<!--", start) and start + 2 <= self._last_comment_end:  # <!--> is a whole one
            return self._text.find("-->", start + 2) + 3
        return self._text.find(">", start) + 1

    def of_tag(self, at: int) -> int:
        """The end of a tag, from within it."""
        inside = at
        while self._quotes_count and (match := _TAG_END_OR_QUOTE.search(self._text, inside)):
            if match[0] == ">":
                return match.end()
            closing = self._text.find(match[0][-1], match.end())
            inside = match.end() if closing < 0 else closing + 1
        # The rest of the text is inside quotes, as they count; every later tag may find the same, at the same expense.
        self._quotes_count = False
        return self._text.find(">", at) + 1
