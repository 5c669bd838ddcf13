"""The JSON of a value in pieces is the JSON of the value; whether it is long is seen without making it."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from decimal import Decimal
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils import json as kombu_json

from resource_guard import large_values
from resource_guard.large_values import is_longer, json_chunks, json_pieces, length_bounds

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.lists(inner, max_size=8).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers() | st.booleans() | st.none(), inner, max_size=8)
    ),
    max_leaves=40,
)


class Colour(IntEnum):
    RED = 1


class Odd(dict[str, int]):
    """A subclass, which `dumps` may write in its own way."""


KINDS: list[Any] = [
    None, True, 0, -1.5, 10**400, float("inf"), "", "ä€😀\x00\"\\", "\ud83d", [], {}, (), [[]], {"a": {}},
    {7: "a", None: "b", True: "c", 2.5: "d"}, (1, (2, [3])), Colour.RED, Odd(a=1), [Odd(b=2)],
    b"bytes", b"\xff\xfe", Decimal("1.10"), datetime(2026, 1, 2, tzinfo=UTC), uuid.UUID(int=7), [uuid.UUID(int=8)],
    "😀" * 3_000_000, list(range(5_000)), [{"id": n} for n in range(3_000)], {str(n): [n] for n in range(3_000)},
    [["x" * 1_500_000], {"y": "ü" * 1_500_000}],
]  # fmt: skip


@pytest.mark.parametrize("value", KINDS, ids=lambda value: type(value).__name__)
def test_every_kind_of_value_is_written_as_dumps_writes_it(value: Any) -> None:
    assert b"".join(json_chunks(value, kombu_json.dumps)) == kombu_json.dumps(value).encode()


@given(values)
def test_pieces_join_to_the_whole(value: Any) -> None:
    assert "".join(json_pieces(value, json.dumps)) == json.dumps(value)


@given(values)
def test_taken_apart_at_every_limit_it_is_the_same(value: Any) -> None:
    """The numbers above which it is cut are large; here they are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_values, "_TEXT_CHARS", 3)
        patch.setattr(large_values, "_SINGLY_MAX", 3)
        patch.setattr(large_values, "_BATCH", 2)
        patch.setattr(large_values, "_CHUNK_CHARS", 10)
        assert b"".join(json_chunks(value, json.dumps)) == json.dumps(value).encode()


@given(values)
def test_the_bounds_hold(value: Any) -> None:
    least, most = length_bounds(value, 10**9)
    assert least <= len(json.dumps(value)) <= most


@given(values, st.integers(0, 300))
def test_longer_is_longer(value: Any, than: int) -> None:
    assert is_longer(value, than, json.dumps) == (len(json.dumps(value)) > than)


def test_a_long_value_is_known_as_such_without_its_json() -> None:
    def no_dumps(value: Any) -> str:
        raise AssertionError(f"asked for the JSON of a {type(value).__name__}")

    assert is_longer("x" * 1_000_000, 64_000, no_dumps)
    assert is_longer([1] * 1_000_000, 64_000, no_dumps)
    assert not is_longer({"answer": 42, "words": ["short", "ones"]}, 64_000, no_dumps)


def test_a_value_within_itself_is_refused_as_json_refuses_it() -> None:
    endless: list[Any] = ["x" * 100]
    endless.append(endless)
    with pytest.raises(ValueError, match="Circular"):
        list(json_pieces(endless, json.dumps))


def test_no_piece_of_a_long_list_is_long() -> None:
    longest = max(len(piece) for piece in json_pieces(list(range(1_000_000)), json.dumps))
    assert longest < 3_000
