"""What a step says: gathered, sent once and in order, and read back."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import fakeredis
import pytest
import redis
from celery.exceptions import TimeoutError as CeleryTimeoutError

from agentlink.broker import streams
from agentlink.broker.errors import ChunksNotSent
from agentlink.broker.lease import IN_FLIGHT_PREFIX
from agentlink.broker.outlet import Outlet
from agentlink.broker.streams import EMIT, LOG, RUN_PREFIX, Said, Speaker, stream_key, told_key
from tasks import task, telling
from tasks.errors import ChunkTooLarge
from tests.waiting import wait_until
from workflows import RunUnknown, StreamItem
from workflows.streams import follow, joined, said_so_far

RUN = "run"
MAX_BYTES = 1_000_000


@pytest.fixture
def client() -> fakeredis.FakeRedis:
    client = fakeredis.FakeRedis(server_type="valkey")
    client.hset(RUN_PREFIX + RUN, "state", "RUNNING")
    client.expire(RUN_PREFIX + RUN, 1000)
    return client


def _speaker(step: str = "s", attempt: int = 1, **facts: str) -> Speaker:
    return Speaker(run_id=RUN, step=step, task="tests.say", attempt=attempt, **facts)


def _said(number: int, *data: Any, fraction: float | None = None, message: str | None = None) -> Said:
    items = [streams.item(EMIT, json.dumps(each)) for each in data]
    return Said(number=number, items=items, fraction=fraction, message=message, must_arrive=bool(items))


def _data(client: fakeredis.FakeRedis) -> list[tuple[int, Any]]:
    return [(item.attempt, item.data) for item in said_so_far(client, RUN, (EMIT, LOG))]


class TestTelling:
    def test_what_is_sent_again_is_there_once(self, client: fakeredis.FakeRedis) -> None:
        """Its answer got lost; whoever sent it asks again."""
        speaker = _speaker()
        for number, word in ((1, "one"), (1, "one"), (2, "two"), (2, "two")):
            assert streams.tell(client, speaker, _said(number, word), MAX_BYTES) == "told"
        assert _data(client) == [(1, "one"), (1, "two")]

    def test_another_execution_is_another_attempt_also_where_it_does_not_know(
        self, client: fakeredis.FakeRedis
    ) -> None:
        for word, attempt in (("one", 1), ("two", 1), ("three", 5)):
            streams.tell(client, _speaker(attempt=attempt), _said(1, word), MAX_BYTES)
        assert _data(client) == [(1, "one"), (2, "two"), (5, "three")]

    def test_who_has_the_step_no_more_says_nothing(self, client: fakeredis.FakeRedis) -> None:
        speaker = _speaker(worker="w", number="7")
        client.hset(IN_FLIGHT_PREFIX + "w", "7", "message")
        assert streams.tell(client, speaker, _said(1, "one"), MAX_BYTES) == "told"
        client.delete(IN_FLIGHT_PREFIX + "w")
        assert streams.tell(client, speaker, _said(2, "two"), MAX_BYTES) == "superseded"
        assert _data(client) == [(1, "one")]

    def test_nothing_comes_after_the_end_of_a_run_nor_without_one(self, client: fakeredis.FakeRedis) -> None:
        client.hset(RUN_PREFIX + RUN, "ended_at", "1.0")
        assert streams.tell(client, _speaker(), _said(1, "late"), MAX_BYTES) == "ended"
        client.delete(RUN_PREFIX + RUN)
        assert streams.tell(client, _speaker(), _said(1, "lost"), MAX_BYTES) == "unknown"
        assert client.keys() == []

    def test_all_of_it_is_kept_as_long_as_the_run(self, client: fakeredis.FakeRedis) -> None:
        streams.tell(client, _speaker(), _said(1, "one"), MAX_BYTES)
        assert {client.ttl(stream_key(RUN)), client.ttl(told_key(RUN))} <= {999, 1000}

    def test_of_too_much_the_oldest_goes(self, client: fakeredis.FakeRedis, caplog: pytest.LogCaptureFixture) -> None:
        speaker = _speaker()
        for number in range(1, 21):
            streams.tell(client, speaker, _said(number, f"{number:0200}"), 2_000)
        kept = [int(word) for _, word in _data(client)]
        assert kept == list(range(kept[0], 21))
        assert 3 <= len(kept) <= 6
        client.hset(RUN_PREFIX + RUN, "state", "SUCCEEDED")
        with caplog.at_level(logging.WARNING):
            assert len(list(follow(client, RUN))) == len(kept)
        assert f"its first {20 - len(kept)} entries are gone" in caplog.text

    def test_an_entry_larger_than_all_that_is_kept_is_kept_alone(self, client: fakeredis.FakeRedis) -> None:
        speaker = _speaker()
        for number in (1, 2):
            streams.tell(client, speaker, _said(number, "x" * 5_000), 2_000)
        assert len(_data(client)) == 1

    def test_the_most_that_was_told_outlives_an_attempt(self, client: fakeredis.FakeRedis) -> None:
        streams.tell(client, _speaker(), _said(1, fraction=0.8, message="far"), MAX_BYTES)
        streams.tell(client, _speaker(attempt=2), _said(1, fraction=0.1, message="\ud800"), MAX_BYTES)
        told = json.loads(client.hget(told_key(RUN), "s") or "")
        assert (told["fraction"], told["top"], told["message"]) == (0.1, 0.8, "\\ud800")
        assert not client.exists(stream_key(RUN))


class TestWhoSpeaks:
    REQUEST: ClassVar = {
        "called_directly": False, "is_eager": False, "id": "s", "root_id": RUN, "retries": 0,
        "replaced_task_nesting": 0, "agentlink_run": RUN, "properties": {"delivery_tag": "w/7"},
    }  # fmt: skip

    def _speaker(self, *, late: bool = True, **facts: Any) -> Speaker | None:
        return streams.speaker_of(SimpleNamespace(**(self.REQUEST | facts)), "tests.say", late=late)

    def test_a_step_of_a_run(self) -> None:
        speaker = self._speaker()
        assert speaker is not None
        assert (speaker.run_id, speaker.step, speaker.attempt) == (RUN, "s", 1)
        assert (speaker.worker, speaker.number) == ("w", "7")

    def test_all_that_made_it_begin_again_counts(self) -> None:
        speaker = self._speaker(retries=1, agentlink_deliveries=2, agentlink_evicted=[3, 1_000])
        assert speaker is not None
        assert speaker.attempt == 7

    def test_what_replaces_another_is_told_from_it(self) -> None:
        speaker = self._speaker(replaced_task_nesting=2)
        assert speaker is not None
        assert speaker.step == "s/2"

    def test_a_message_that_is_acknowledged_early_is_not_looked_for(self) -> None:
        speaker = self._speaker(late=False)
        assert speaker is not None
        assert (speaker.worker, speaker.number) == ("", "")

    @pytest.mark.parametrize(
        "facts",
        [
            {"called_directly": True},
            {"is_eager": True},
            {"agentlink_run": None, "id": RUN},
            {"agentlink_run": None, "root_id": None},
        ],
    )
    def test_nobody_where_there_is_no_run(self, facts: dict[str, Any]) -> None:
        assert self._speaker(**facts) is None


class Broker:
    """What an outlet sends to: takes what it gets, or fails as it is told."""

    def __init__(self) -> None:
        self.said: list[Said] = []
        self.error: Exception | None = None
        self.fails = threading.Event()
        self.outcome = "told"

    def __call__(self, said: Said) -> str:
        if self.error is not None:
            self.fails.set()
            raise self.error
        self.said.append(said)
        return self.outcome

    @property
    def items(self) -> list[Any]:
        return [json.loads(item)[2] for said in self.said for item in said.items]


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def outlet(broker: Broker) -> Outlet:
    return Outlet(broker, "tests.say[s]")


AWAY = redis.ConnectionError("away")


class TestOutlet:
    def test_what_is_said_is_sent_without_another_word(self, broker: Broker, outlet: Outlet) -> None:
        outlet.emit('"one"', 0)
        wait_until(lambda: broker.items == ["one"], what="what was said")
        outlet.close(0)

    def test_many_calls_are_few_round_trips(self, broker: Broker, outlet: Outlet) -> None:
        begun = time.monotonic()
        for number in range(10_000):
            outlet.emit(str(number), 0)
            outlet.progress(number / 10_000, None)
        outlet.close(0)
        assert broker.items == list(range(10_000))
        assert len(broker.said) <= 10_000 / 500 + (time.monotonic() - begun) / 0.05 + 2
        assert [said.number for said in broker.said] == list(range(1, len(broker.said) + 1))

    def test_large_parts_are_sent_as_they_come(self, broker: Broker, outlet: Outlet) -> None:
        for _ in range(4):
            outlet.emit(json.dumps("x" * 200_000), 0)
        outlet.close(0)
        assert max(sum(map(len, said.items)) for said in broker.said) < 500_000

    def test_output_waits_for_a_broker_that_is_away_and_arrives_in_order(self, broker: Broker, outlet: Outlet) -> None:
        broker.error = AWAY
        outlet.emit('"one"', 0)
        assert broker.fails.wait(5)
        outlet.emit('"two"', 0)
        broker.error = None
        outlet.close(0)
        assert broker.items == ["one", "two"]

    def test_output_does_not_wait_for_ever(self, broker: Broker, outlet: Outlet) -> None:
        broker.error = AWAY
        outlet.emit('"one"', 0)
        with pytest.raises(ChunksNotSent, match=r"tests.say\[s\] can't be sent: away"):
            outlet.close(0.05)

    def test_an_error_that_lasts_is_not_waited_for(self, broker: Broker, outlet: Outlet) -> None:
        broker.error = redis.ResponseError("WRONGTYPE")
        outlet.emit('"one"', 0)
        with pytest.raises(ChunksNotSent, match="WRONGTYPE"):
            outlet.close(60)

    def test_progress_and_log_lines_are_lost_with_one_warning(
        self, broker: Broker, outlet: Outlet, caplog: pytest.LogCaptureFixture
    ) -> None:
        broker.error = AWAY
        for number in range(2_000):
            outlet.log('"line"')
            outlet.progress(number / 2_000, None)
        assert broker.fails.wait(5)
        outlet.progress(1.0, "there")
        outlet.close(60)
        assert broker.said == []
        assert len([line for line in caplog.messages if "log lines or progress of tests.say[s] are lost" in line]) == 1

    def test_lines_in_a_loop_are_all_there(self, broker: Broker, outlet: Outlet) -> None:
        for number in range(5_000):
            outlet.log(str(number))
        outlet.close(0)
        assert broker.items == list(range(5_000))

    def test_of_progress_only_the_latest_is_sent(self, broker: Broker, outlet: Outlet) -> None:
        for number in range(1_000):
            outlet.progress(number / 1_000, f"at {number}")
        outlet.close(0)
        assert len(broker.said) < 100
        assert (broker.said[-1].fraction, broker.said[-1].message) == (0.999, "at 999")

    def test_its_thread_ends_with_it_and_leaves_others_their_stack(self, broker: Broker, outlet: Outlet) -> None:
        outlet.emit('"one"', 0)
        outlet.close(0)
        assert not [thread for thread in threading.enumerate() if thread.name == "outlet"]
        assert threading.stack_size() == 0

    def test_where_there_is_no_room_for_a_thread_it_is_sent_at_the_end(
        self, broker: Broker, outlet: Outlet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_room(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", no_room)
        for number in range(600):
            outlet.emit(str(number), 0)
            outlet.progress(0.5, None)
        assert broker.items == list(range(500))
        outlet.close(0)
        assert broker.items == list(range(600))

    def test_a_log_line_waits_a_moment_only_for_a_broker_that_is_frozen(self, caplog: pytest.LogCaptureFixture) -> None:
        answers = threading.Event()

        def frozen(said: Said) -> str:
            answers.wait(20)
            return "told"

        outlet = Outlet(frozen, "tests.say[s]")
        begun = time.monotonic()
        for _ in range(1_100):
            outlet.log('"line"')
        assert time.monotonic() - begun < 10
        assert "are lost: the broker does not take them" in caplog.text
        answers.set()
        outlet.close(0)


class TestReading:
    def test_a_reader_gets_what_was_said_and_then_what_is_said(self, client: fakeredis.FakeRedis) -> None:
        speaker = _speaker()
        streams.tell(client, speaker, _said(1, "one", "two"), MAX_BYTES)
        reading = follow(client, RUN)
        assert [next(reading).data, next(reading).data] == ["one", "two"]
        streams.tell(client, speaker, _said(2, {"a": [1]}), MAX_BYTES)
        item = next(reading)
        assert (item.data, item.step_id, item.task, item.attempt, item.kind) == ({"a": [1]}, "s", "tests.say", 1, EMIT)
        client.hset(RUN_PREFIX + RUN, "state", "FAILED")
        assert list(reading) == []

    def test_a_broker_that_goes_away_is_waited_for(
        self, client: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        speaker, xread = _speaker(), client.xread
        answers: list[Callable[[], None]] = []

        def unreliable(*args: Any, **kwargs: Any) -> Any:
            if answers:
                answers.pop()()
            return xread(*args, **kwargs)

        def go_away() -> None:
            raise redis.ConnectionError("gone")

        monkeypatch.setattr(client, "xread", unreliable)
        streams.tell(client, speaker, _said(1, "one"), MAX_BYTES)
        reading = follow(client, RUN)
        assert next(reading).data == "one"
        streams.tell(client, speaker, _said(2, "two"), MAX_BYTES)
        client.hset(RUN_PREFIX + RUN, "state", "SUCCEEDED")
        answers += [go_away, go_away]
        assert [item.data for item in reading] == ["two"]

    def test_a_run_that_had_ended_and_goes_on_is_read_on(self, client: fakeredis.FakeRedis) -> None:
        """A dead letter of it was sent again: the mark of its end stays where it was."""
        speaker = _speaker()
        streams.tell(client, speaker, _said(1, "one"), MAX_BYTES)
        client.xadd(stream_key(RUN), {"end": "FAILED"})
        streams.tell(client, speaker, _said(2, "two"), MAX_BYTES)
        reading = follow(client, RUN)
        assert [next(reading).data, next(reading).data] == ["one", "two"]

    def test_a_reader_waits_as_long_as_it_is_told(self, client: fakeredis.FakeRedis) -> None:
        with pytest.raises(CeleryTimeoutError, match="run run has put out nothing for"):
            next(follow(client, RUN, timeout_s=0.05))

    def test_a_run_that_is_not_known(self, client: fakeredis.FakeRedis) -> None:
        for read in (lambda: next(follow(client, "other")), lambda: said_so_far(client, "other", (LOG,))):
            with pytest.raises(RunUnknown):
                read()

    def test_the_text_is_that_of_each_steps_latest_attempt(self) -> None:
        def item(step_id: str, attempt: int, data: Any, replacements: int = 0, kind: str = EMIT) -> StreamItem:
            return StreamItem(
                step_id=step_id, task="t", attempt=attempt, kind=kind, data=data, at=0.0, replacements=replacements
            )

        items = [
            item("a", 1, "lost"),
            item("b", 1, "B"),
            item("a", 2, "A1"),
            item("a", 2, "line", kind=LOG),
            item("b", 1, {"n": 1}, replacements=1),
            item("a", 2, "A2"),
        ]
        assert joined(items) == 'BA1{"n": 1}A2'
        assert joined([]) == ""


@task(bind=True, name="tests.unit.tells")
def tells(self: Any, size: int) -> str:
    self.progress(0.5, "half way")
    self.progress(float("nan"))
    self.log("read %d pages", 12)
    self.log("read %d pages", "no")
    self.emit("x" * size)
    return "done"


class TestOutsideAnyRun:
    def test_a_task_called_as_a_function_tells_the_log(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.DEBUG, logger=telling.__name__):
            assert tells(3) == "done"
        assert caplog.messages == [
            "tests.unit.tells: 50 % half way",
            "tests.unit.tells: 0 % ",
            "tests.unit.tells: read 12 pages",
            "tests.unit.tells: read %d pages ('no',)",
            'tests.unit.tells: emits "xxx"',
        ]

    def test_applied_here_too(self) -> None:
        assert tells.apply((3,)).get() == "done"

    def test_too_much_at_once_is_refused_here_too(self) -> None:
        with pytest.raises(ChunkTooLarge, match="tells emits 300 kB of JSON at once, and 256 kB is the most"):
            tells(300_000)
