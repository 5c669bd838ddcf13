"""What is kept of a message nobody tries any more, for how long, and how it is found and sent again."""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace
from typing import Any

import fakeredis
import pytest

from agentlink.broker import dead_letters
from agentlink.broker.dead_letters import DeadLetter
from agentlink.broker.errors import LetterAmbiguous, LetterUnknown
from agentlink.broker.transport import Channel

URGENT = f"io{Channel.sep}9"
KILLED = "the process died: signal 9 (SIGKILL)"


@pytest.fixture
def client() -> fakeredis.FakeRedis:
    return fakeredis.FakeRedis(server_type="valkey")


@pytest.fixture(autouse=True)
def resumers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr(dead_letters, "resumers", [])
    return dead_letters.resumers


def _bury(
    client: fakeredis.FakeRedis, letter_id: str, *, task: str = "my.tasks.add", key: str = "cpu", reason: str = KILLED
) -> DeadLetter:
    headers = {"id": letter_id, "task": task, "argsrepr": "(1, 'Ä')", "kwargsrepr": "{}", "retries": 2}
    headers |= {"agentlink_run": "run-1", "agentlink_deliveries": 2, "expires": "2020-01-01", "eta": "2020-01-01"}
    properties = {"delivery_tag": "t", "body_encoding": "base64", "priority": 9}
    body = base64.b64encode(json.dumps([[1, "Ä"], {}, {"chord": None}]).encode()).decode()
    payload = {"agentlink_deliveries": 2, "body": body, "content-type": "application/json"}
    payload |= {"headers": headers, "properties": properties}
    client.hset("agentlink:inflight:w", "7", f"{key}\0{json.dumps(payload)}")
    message = SimpleNamespace(delivery_tag="w/7", headers=headers)
    letter = dead_letters.bury(client, message, reason=reason, attempts=3)
    assert letter is not None
    return letter


def test_a_letter_tells_what_died_of_what(client: fakeredis.FakeRedis) -> None:
    letter = _bury(client, "a", key=URGENT)
    assert list(dead_letters.find(client)) == [letter] == [dead_letters.read(client, "a")]
    assert (letter.task, letter.queue, letter.attempts, letter.run_id) == ("my.tasks.add", "io", 3, "run-1")
    assert (letter.reason, letter.signal, letter.arguments) == (KILLED, "SIGKILL", "(1, 'Ä') {}")


def test_buried_twice_it_is_one_letter(client: fakeredis.FakeRedis) -> None:
    _bury(client, "a")
    _bury(client, "a")
    assert dead_letters.count(client) == len(list(dead_letters.find(client))) == 1


def test_a_message_that_another_worker_has_by_now_is_not_buried(client: fakeredis.FakeRedis) -> None:
    message = SimpleNamespace(delivery_tag="w/7", headers={"id": "a", "task": "t"})
    assert dead_letters.bury(client, message, reason=KILLED, attempts=3) is None
    assert client.keys() == []


def test_letters_are_found_newest_first_by_task_and_by_text(client: fakeredis.FakeRedis) -> None:
    for letter_id in "abc":
        _bury(client, letter_id, task=f"my.tasks.{letter_id}", reason=f"Reason {letter_id.upper()}")
    assert [letter.id for letter in dead_letters.find(client)] == ["c", "b", "a"]
    assert [letter.id for letter in dead_letters.find(client, task="b")] == ["b"]
    assert [letter.id for letter in dead_letters.find(client, task="my.tasks.b", text="reason")] == ["b"]
    assert [letter.id for letter in dead_letters.find(client, text="ä")] == ["c", "b", "a"]
    assert list(dead_letters.find(client, task="tasks")) == []


def test_ten_thousand_letters_are_kept_and_the_newest_read_without_the_rest(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "KEEP_LETTERS", 1_000)
    for number in range(1_100):
        _bury(client, f"{number:04}")
    assert dead_letters.count(client) == client.hlen(dead_letters.MESSAGES_KEY) == 1_000
    read: list[int] = []
    hmget = client.hmget
    monkeypatch.setattr(client, "hmget", lambda key, ids: read.append(len(ids)) or hmget(key, ids))
    assert next(dead_letters.find(client)).id == "1099"
    assert sum(read) == 500
    with pytest.raises(LetterUnknown):
        dead_letters.read(client, "0099")
    assert dead_letters.read(client, "0100").id == "0100"


def test_a_letter_is_forgotten_after_thirty_days_also_when_no_other_comes(
    client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    _bury(client, "old")
    assert 0 < min(client.ttl(key) for key in client.keys("agentlink:dead*")) <= dead_letters.KEEP_S
    now = dead_letters.time.time()
    monkeypatch.setattr(dead_letters.time, "time", lambda: now + dead_letters.KEEP_S + 1)
    assert dead_letters.count(client) == 0
    assert list(dead_letters.find(client)) == []
    _bury(client, "new")
    assert client.hkeys(dead_letters.MESSAGES_KEY) == [b"new"]


def test_the_beginning_of_an_id_will_do_where_it_names_one_letter(client: fakeredis.FakeRedis) -> None:
    for letter_id in ("batch-0001", "batch-0002", "batch-00021"):
        _bury(client, letter_id)
    assert dead_letters.prefix_length(client) == 11
    assert dead_letters.read(client, "batch-0001").id == "batch-0001"
    assert dead_letters.read(client, "batch-0002").id == "batch-0002"
    with pytest.raises(LetterAmbiguous, match=r"3 dead letters' ids begin with 'batch' \(batch-00"):
        dead_letters.read(client, "batch")
    for unknown in ("", "batch-1"):
        with pytest.raises(LetterUnknown, match="`agentlink dead` lists them"):
            dead_letters.read(client, unknown)


def test_ids_are_shown_with_eight_characters_when_that_is_enough(client: fakeredis.FakeRedis) -> None:
    assert dead_letters.prefix_length(client) == 8
    for letter_id in ("a", "b" * 36):
        _bury(client, letter_id)
    assert dead_letters.prefix_length(client) == 8


def test_sent_again_a_message_is_where_it_was_taken_from_as_if_nobody_had_tried_it(
    client: fakeredis.FakeRedis,
) -> None:
    letter = _bury(client, "a", key=URGENT)
    assert dead_letters.send_again(client, [letter, letter]) == 1
    assert dead_letters.send_again(client, [letter]) == 0
    (text,) = client.lrange(URGENT, 0, -1)
    message = json.loads(text)
    assert "agentlink_deliveries" not in {**message, **message["headers"]}
    assert (message["headers"]["retries"], message["headers"]["expires"], message["headers"]["eta"]) == (0, None, None)
    assert message["headers"]["agentlink_run"] == "run-1"
    assert client.keys("agentlink:dead*") == []


def test_the_run_of_a_letter_is_resumed_in_its_place_or_the_letter_stays(
    client: fakeredis.FakeRedis, resumers: list[Any]
) -> None:
    letter, other = _bury(client, "a"), _bury(client, "b")

    def resume(_: Any, one: DeadLetter) -> bool:
        if not cured:
            raise LetterUnknown("not now")
        resumed.append(one.id)
        return one.id == "a"

    cured, resumed = False, list[str]()
    resumers.append(resume)
    with pytest.raises(LetterUnknown, match="not now"):
        dead_letters.send_again(client, [letter])
    assert dead_letters.read(client, "a") == letter
    cured = True
    assert dead_letters.send_again(client, [letter, letter, other]) == 2
    assert resumed == ["a", "b"]
    assert client.llen("cpu") == 1  # the letter that is in no run
    assert dead_letters.count(client) == 0


def test_dropped_letters_are_gone(client: fakeredis.FakeRedis) -> None:
    for letter_id in "abc":
        _bury(client, letter_id)
    assert dead_letters.drop(client, ["a", "c", "unknown"]) == 2
    assert dead_letters.drop(client, []) == 0
    assert [letter.id for letter in dead_letters.find(client)] == ["b"]
    assert client.hkeys(dead_letters.MESSAGES_KEY) == [b"b"]


def test_a_letters_message_is_shown_with_its_arguments_whole(client: fakeredis.FakeRedis) -> None:
    letter = _bury(client, "a")
    assert dead_letters.message_of(client, letter)["body"][0] == [1, "Ä"]
    dead_letters.drop(client, ["a"])
    with pytest.raises(LetterUnknown):
        dead_letters.message_of(client, letter)
