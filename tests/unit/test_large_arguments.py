"""What of a call's arguments is kept in files, what travels, and what a task gets."""

from __future__ import annotations

import json
import marshal
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fakeredis
import pytest
from celery import chain, chord, group
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.json import dumps, loads

from agentlink.broker import argument_store
from agentlink.broker.argument_store import READ_KEPT_BYTES, ArgumentStore
from agentlink.broker.arguments import (
    ARGUMENTS_HEADER,
    Claims,
    _fits,
    belong,
    delay_s,
    held,
    let_go_commands,
    which_wait,
)
from resource_guard.errors import ArgumentLost, ResultLost
from resource_guard.large_values import Reference
from resource_guard.storage import Storage
from tests.integration import large, sample

INLINE = 1_000
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=5), inner, max_size=8),
    max_leaves=30,
)
BIG = "x" * 2_000
NUMBERS = list(range(1_000))


class Counting:
    """Files that count what is written and read."""

    def __init__(self, folder: Path) -> None:
        self.storage = Storage(str(folder))
        self.written: list[Reference] = []
        self.read_digests: list[str] = []

    def put(self, chunks: Iterable[bytes]) -> Reference:
        self.written.append(self.storage.put(chunks))
        return self.written[-1]

    def read(self, reference: Reference, of: str) -> bytearray:
        self.read_digests.append(reference.digest)
        return self.storage.read(reference, of)

    def has(self, reference: Reference) -> bool:
        return self.storage.has(reference)


@pytest.fixture
def files(tmp_path: Path) -> Counting:
    return Counting(tmp_path)


@pytest.fixture
def store(files: Counting) -> ArgumentStore:
    return ArgumentStore(files)


@pytest.fixture
def claims(store: ArgumentStore) -> Claims:
    return Claims(store.put, {}, INLINE)


def _after_the_way(value: Any) -> Any:
    """As it comes out of a message."""
    return loads(dumps(value))


def _read(store: ArgumentStore, *args: Any) -> list[Any]:
    return store.read("task", _after_the_way(args), {})[0]


class TestWhatTravels:
    @pytest.mark.parametrize(
        "value",
        [0, None, "small", [1, 2, 3], {"a": [1]}, [], [["a"], ["b"]], {"agentlink_stored": "0" * 64, "bytes": 7}],
        ids=str,
    )
    def test_a_small_argument_is_left_as_it_is(self, claims: Claims, value: Any) -> None:
        """The very same objects, and nothing is made of them."""
        args, kwargs = (value, 1), {"name": value}
        assert claims.values(args) is args
        assert claims.named(kwargs) is kwargs
        assert claims.found == {}

    @pytest.mark.parametrize(
        "value",
        [
            BIG,
            NUMBERS,
            {"key": BIG},
            [1, BIG],
            [[BIG], 1],
            [[[BIG]]],
            [{"a": BIG}, BIG],
            {"at": datetime.now(UTC), "t": BIG},
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_a_large_one_comes_back_equal(self, claims: Claims, store: ArgumentStore, value: Any) -> None:
        args = claims.values((1, value))
        assert len(dumps(args)) < 300
        assert claims.found
        assert _read(store, *args) == [1, value]

    def test_a_keyword_argument_too(self, claims: Claims, store: ArgumentStore) -> None:
        kwargs = claims.named({"text": BIG, "n": 1})
        assert store.read("task", (), _after_the_way(kwargs))[1] == {"text": BIG, "n": 1}

    def test_in_a_list_what_is_large_by_itself_is_stored_by_itself(
        self, claims: Claims, files: Counting, store: ArgumentStore
    ) -> None:
        """So what a hundred lists share is stored once."""
        lists = [claims.value([BIG, number]) for number in range(100)]
        assert len(files.written) == 1
        assert [_read(store, one)[0] for one in lists] == [[BIG, number] for number in range(100)]

    def test_a_list_that_is_still_large_is_stored_whole_and_all_it_refers_to_is_known(
        self, claims: Claims, store: ArgumentStore
    ) -> None:
        value = [BIG, *NUMBERS[:600], BIG + "y"]
        travels = claims.value(value)
        assert isinstance(travels, Reference)
        assert len(claims.found) == 3
        again = Claims(store.put, claims.seen, INLINE)
        assert again.value(value) == travels
        assert again.found.keys() == claims.found.keys()
        assert _read(store, travels) == [value]

    def test_a_reference_that_is_passed_on_is_not_read(self, claims: Claims, files: Counting) -> None:
        """What a chord has joined, also of groups within it."""
        one, other = Reference(digest="a" * 64, size_bytes=1), Reference(digest="b" * 64, size_bytes=2)
        args = _after_the_way(([one, 1, [other]],))
        assert claims.values(args) is args
        assert claims.found.keys() == {one.digest, other.digest}
        assert files.written == files.read_digests == []

    def test_a_result_that_is_handed_on_is_stored_whole(self, store: ArgumentStore, files: Counting) -> None:
        """It is a task's result too, and whoever asks for that is to find it in one file."""
        claims = Claims(store.put, {}, INLINE, singly=False)
        value = [BIG, [BIG + "y"], 1]
        assert isinstance(claims.value(value), Reference)
        assert len(files.written) == 1
        assert claims.seen[id(value)].within == {}
        reference = Reference(digest="a" * 64, size_bytes=1)
        joined = [[reference], *range(10)]
        assert claims.value(joined) is joined
        assert reference.digest in claims.found

    def test_of_a_long_list_only_references_are_looked_for(self, claims: Claims, files: Counting) -> None:
        reference = Reference(digest="a" * 64, size_bytes=1)
        travels = claims.value([BIG, [reference], *range(2_000)])
        assert files.written == [travels]
        assert claims.found.keys() == {travels.digest, reference.digest}

    def test_what_json_can_not_have_is_left_to_kombu(self, claims: Claims) -> None:
        value = [object(), BIG * 2]
        assert claims.value(value) is value
        circular: list[Any] = [BIG]
        circular.append(circular)
        assert claims.value(circular) is circular

    @given(values)
    def test_what_is_small_by_a_quick_look_is_small(self, value: Any) -> None:
        """Of whatever plain types; and what is not said to be small is looked at closely."""
        length = len(dumps(value))
        for limit in (length - 1, length, 8 * length, 100 * length):
            if _fits(value, limit):
                assert length <= limit
        assert _fits(value, 8 * len(marshal.dumps(value, 2)))


class TestWhatComesAfter:
    def test_a_chain_a_body_and_a_callback_carry_references(self, claims: Claims) -> None:
        """However deep; the user's own signatures stay as they are."""
        body = chain(large.length.s(BIG), chord([large.length.s(BIG), group([large.length.s(BIG)])], large.lengths.s()))
        link = large.length.si(BIG)
        options = {"chain": [chain(body, link)], "chord": body, "link": [link], "queue": "q"}
        changed = claims.after(options)
        assert changed.keys() == {"chain", "chord", "link"}
        assert BIG not in dumps(changed)
        assert dumps(changed).count("agentlink_argument") == dumps(options).count(BIG) == 8
        assert link.args == (BIG,)
        assert BIG in dumps(body)

    def test_small_ones_are_left_as_they_are(self, claims: Claims) -> None:
        assert claims.after({"chain": [sample.add.s(1, 1)], "chord": sample.total.s(), "link": None}) == {}


class TestStore:
    def test_one_object_in_many_messages_is_written_once_and_made_json_of_once(
        self, store: ArgumentStore, files: Counting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[Any] = []
        monkeypatch.setattr(argument_store, "dumps", lambda value: made.append(value) or dumps(value))
        seen: Any = {}
        for _ in range(1_000):
            Claims(store.put, seen, INLINE).value(NUMBERS)
        assert len(files.written) == 1
        assert len(made) < 1_100  # one thousand members, each once

    def test_equal_values_are_written_once(self, claims: Claims, files: Counting) -> None:
        assert len({claims.value(list(NUMBERS)) for _ in range(5)}) == 1
        assert len(files.written) == 1

    def test_a_value_that_was_changed_between_two_calls_is_another(self, store: ArgumentStore) -> None:
        """Identity counts only while nobody could change it."""
        value = list(NUMBERS)
        before = Claims(store.put, {}, INLINE).value(value)
        value.append("more")
        after = Claims(store.put, {}, INLINE).value(value)
        assert _read(store, before, after) == [NUMBERS, value]

    def test_a_value_written_a_while_ago_is_written_again(self, files: Counting) -> None:
        """Its file may have had its time."""
        now = [0.0]
        store = ArgumentStore(files, lambda: now[0])
        for now[0] in (0.0, 59.0, 61.0, 100.0, 122.0):
            store.put(BIG)
        assert len(files.written) == 3

    def test_a_value_whose_file_is_gone_is_written_again(self, claims: Claims, files: Counting) -> None:
        Path(files.storage.path(claims.value(list(NUMBERS)).digest)).unlink()
        claims.value(list(NUMBERS))
        assert len(files.written) == 2

    def test_a_value_too_large_to_be_hashed_first_is_whole(
        self, store: ArgumentStore, files: Counting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(argument_store, "_HASHED_FIRST_BYTES", 100)
        value = ["y" * 1_500_000, 1, "z" * 1_500_000]
        references = [store.put(value), store.put(value)]
        assert len(files.written) == 2
        assert references[0] == references[1]
        assert json.loads(files.storage.read(references[0], "task")) == value

    def test_many_tasks_read_a_file_once_and_each_gets_a_value_of_its_own(
        self, claims: Claims, store: ArgumentStore, files: Counting
    ) -> None:
        args = claims.values((NUMBERS,))
        [first], [second] = _read(store, *args), _read(store, *args)
        first.append("mine")
        assert second == NUMBERS
        assert len(files.read_digests) == 1

    def test_what_is_kept_of_what_was_read_is_bounded(
        self, store: ArgumentStore, files: Counting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(argument_store, "READ_KEPT_BYTES", 10_000)
        references = [store.put(str(number) * 3_000) for number in range(5)]
        for _ in range(2):
            _read(store, *references)
        assert len(files.read_digests) == 10  # each time the oldest had gone
        _read(store, references[4], references[3])
        assert len(files.read_digests) == 10
        huge = store.put("h" * 9_000)
        _read(store, huge, huge, references[4])
        assert len(files.read_digests) == 12
        assert READ_KEPT_BYTES == 32_000_000

    def test_a_missing_file_is_a_clear_error(self, claims: Claims, store: ArgumentStore, files: Counting) -> None:
        args = claims.values((BIG,))
        path = files.storage.path(files.written[0].digest)
        Path(path).unlink()
        with pytest.raises(ArgumentLost, match="an argument of task task is lost") as lost:
            _read(store, *args)
        assert (lost.value.task_id, lost.value.file) == ("task", path)
        assert not isinstance(lost.value, ResultLost)


class TestWhoHoldsIt:
    @pytest.fixture
    def client(self) -> fakeredis.FakeRedis:
        return fakeredis.FakeRedis(server_type="valkey", decode_responses=True)

    def test_a_waiting_task_holds_its_arguments_until_it_has_ended(self, client: fakeredis.FakeRedis) -> None:
        for command in [*belong(["d"], ["one", "two"]), held("one", 100), held("two", 100)]:
            client.execute_command(*command)
        assert client.smembers("agentlink:stored:d") == {"one", "two"}
        assert all(client.ttl(key) > 0 for key in client.scan_iter())
        request: Any = type("Request", (), {ARGUMENTS_HEADER: ["d"]})
        for state in ("STARTED", "RETRY", "SUCCESS"):
            assert which_wait(client, ["one", "two", "three"]) == {"one": True, "two": True}
            for command in let_go_commands("one", state, None, None, request):
                client.execute_command(*command)
        assert which_wait(client, ["one", "two", "three"]) == {"two": True}
        assert list(let_go_commands("two", "SUCCESS", None, None, object())) == []

    @pytest.mark.parametrize(
        ("options", "expected_s"),
        [
            (dict, 0),
            (lambda: {"countdown": 30}, 30),
            (lambda: {"eta": datetime.now(UTC) + timedelta(seconds=50)}, 50),
            (lambda: {"eta": (datetime.now(UTC) + timedelta(seconds=50)).isoformat()}, 50),
            (lambda: {"eta": datetime.fromtimestamp(time.time() - 50, UTC).replace(tzinfo=None)}, 0),
        ],
        ids=["now", "countdown", "eta", "text", "past"],
    )
    def test_a_delayed_task_holds_them_longer(self, options: Callable[[], dict[str, Any]], expected_s: float) -> None:
        assert delay_s(options()) == pytest.approx(expected_s, abs=5)
