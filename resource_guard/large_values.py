"""Values too large for the broker: how one is told from others, its JSON text piece by piece, and what stands for it.

Plain Python: what makes JSON of a value is handed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

#: What makes JSON of a value: `json.dumps`, or one that knows more types and writes all others the same way.
Dumps = Callable[[Any], str]

# A longer text is cut into pieces of so many characters.
_TEXT_CHARS = 1_000_000
# Up to so many members of a list or dictionary are written one by one, more in batches.
_SINGLY_MAX = 1_000
_BATCH = 200
# So many lists or dictionaries within each other are taken apart; what is below is handed to `dumps` whole. With the
# number above that bounds the calls of `dumps`, of 2 µs each, to a million.
_DEPTH = 2
_CHUNK_CHARS = 1 << 18
# Beyond it an integer may have more digits than any other number.
_LONG = 1 << 64
_SHORT = frozenset({int, float, bool, type(None)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """What stands in the broker for a value kept in a file."""

    #: SHA-256 of the value's bytes, in hexadecimal.
    digest: str
    #: How many bytes it has, before compression.
    size_bytes: int


def is_longer(value: object, than: int, dumps: Dumps) -> bool:
    """Whether a value's JSON text has more characters `than` that. It is made only where looking does not tell."""
    least, most = length_bounds(value, than)
    return least > than or (most > than and len(dumps(value)) > than)


def length_bounds(value: object, enough: int) -> tuple[int, float]:
    """How many characters a value's JSON text has at least and at most; the first is no longer pursued above `enough`.

    In JSON a character takes 1 to 12 (of ASCII, 6). What is of no plain type may be any length.
    """
    least, most = 0, 0.0
    unseen: list[Any] = [value]
    while unseen and least <= enough:
        one = unseen.pop()
        kind = type(one)
        if kind is str:
            least += len(one) + 2
            most += (6 if one.isascii() else 12) * len(one) + 2
        elif kind in _SHORT and (kind is not int or -_LONG < one < _LONG):
            least += 1
            most += 25
        elif kind is dict:
            least += 4 * len(one)
            most += 6 * len(one) + 2
            if least <= enough:
                unseen += one
                unseen += one.values()
        elif kind is list or kind is tuple:
            least += 2 * len(one)
            most += 2 * len(one) + 2
            if least <= enough:
                unseen += one
        else:
            least += len(one) if kind is bytes else 1
            most = math.inf
    return least, most


def json_chunks(value: object, dumps: Dumps) -> Iterator[bytes]:
    """The bytes of `dumps(value)`, some hundred thousand at a time, without the whole of it being in memory."""
    waiting: list[str] = []
    length = 0
    for piece in json_pieces(value, dumps):
        waiting.append(piece)
        length += len(piece)
        if length >= _CHUNK_CHARS:
            yield "".join(waiting).encode()
            waiting, length = [], 0
    yield "".join(waiting).encode()


def json_pieces(value: object, dumps: Dumps, depth: int = _DEPTH) -> Iterator[str]:
    """The text `dumps(value)` in pieces.

    One piece can still be large: of what `dumps` turns into something else first (bytes), of a batch of large members.
    """
    kind = type(value)  # a subclass may be written in another way
    if isinstance(value, str) and kind is str and len(value) > _TEXT_CHARS:
        yield '"'
        for start in range(0, len(value), _TEXT_CHARS):
            yield dumps(value[start : start + _TEXT_CHARS])[1:-1]
        yield '"'
    elif isinstance(value, (list, tuple)) and kind in (list, tuple) and depth:
        yield from _list_pieces(value, dumps, depth)
    elif isinstance(value, dict) and kind is dict and depth:
        yield from _dict_pieces(value, dumps, depth)
    else:
        yield dumps(value)


def _list_pieces(members: list[Any] | tuple[Any, ...], dumps: Dumps, depth: int) -> Iterator[str]:
    if len(members) > _SINGLY_MAX:
        batches = (members[start : start + _BATCH] for start in range(0, len(members), _BATCH))
        parts: Iterable[Iterable[str]] = ([dumps(batch)[1:-1]] for batch in batches)
    else:
        parts = (json_pieces(member, dumps, depth - 1) for member in members)
    yield from _between("[", parts, "]")


def _dict_pieces(members: dict[Any, Any], dumps: Dumps, depth: int) -> Iterator[str]:
    if len(members) > _SINGLY_MAX:
        items = list(members.items())
        batches = (dict(items[start : start + _BATCH]) for start in range(0, len(items), _BATCH))
        parts: Iterable[Iterable[str]] = ([dumps(batch)[1:-1]] for batch in batches)
    else:
        parts = (_member_pieces(key, member, dumps, depth) for key, member in members.items())
    yield from _between("{", parts, "}")


def _member_pieces(key: object, member: object, dumps: Dumps, depth: int) -> Iterator[str]:
    yield dumps({key: 0})[1:-2]  # JSON's keys are texts, and `dumps` knows how to make them
    yield from json_pieces(member, dumps, depth - 1)


def _between(opening: str, parts: Iterable[Iterable[str]], closing: str) -> Iterator[str]:
    yield opening
    for number, part in enumerate(parts):
        if number:
            yield ", "
        yield from part
    yield closing
