"""Limits by key: what a declaration means, and what the scripts that hand out messages make of it."""

from __future__ import annotations

import json
import random
import time
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import fakeredis
import pytest

from agentlink.broker import dead_letters, limits, queues, revoked
from agentlink.broker.lease import DELAYED_PREFIX, LEASES_KEY, RUNS_STEP, TURNS, Lease, Taken
from agentlink.broker.limits import Limit
from agentlink.broker.publishing import _PURGE
from agentlink.broker.transport import Channel
from tasks import app, task
from tasks.limits import limits_of
from tests.integration import sample
from tests.waiting import wait_until
from workflows import workflow

SEP = Channel.sep
LISTS = [
    name
    for step in reversed(range(RUNS_STEP))
    for name in (queues.keys("cpu")[step], queues.keys("cpu")[step + RUNS_STEP])
]


class Broker:
    """A broker, its workers' leases, and messages named by their ids."""

    def __init__(self) -> None:
        self.server = fakeredis.FakeServer(server_type="valkey")
        self.client = fakeredis.FakeRedis(server=self.server)

    def lease(self, length_s: float = 30.0) -> Lease:
        lease = Lease(partial(fakeredis.FakeRedis, server=self.server), length_s=length_s, separator=SEP)
        lease.worker = "made up"  # so that no thread renews it
        lease._claim(self.client)
        return lease

    def send(
        self, limit: Limit | None, *ids: str, priority: int = 0, root: str | None = None, queue: str = "cpu"
    ) -> None:
        for task_id in ids:
            message = json.dumps({"body": '"agentlink_limits"', "headers": {"id": task_id}, "properties": {}})
            step = priority + (RUNS_STEP if root else 0)
            key = queues.keys(queue)[step] + (f"\1{root}" if root else "")
            text = limit.marked(message, task_id, priority) if limit else message
            self.client.eval(TURNS + "enqueue(KEYS[1], ARGV[1])", 1, key, text)

    def take(self, lease: Lease, wanted: int = 1, queue: str = "cpu") -> dict[str, str]:
        """The tags of what is taken, by the ids."""
        lists = [name.replace("cpu", queue) for name in LISTS]
        taken, self.next_due_s = lease.exchange(self.client, lists, [DELAYED_PREFIX + queue], wanted)
        self.messages = [json.loads(one.message) for one in taken]
        return {json.loads(one.message)["headers"]["id"]: lease.tag(one) for one in taken}

    def done(self, lease: Lease, tag: str) -> None:
        lease.acknowledge(tag)

    def left(self) -> list[str]:
        """What the limits have left in the broker."""
        return sorted(key.decode() for key in self.client.keys("agentlink:limit*") + self.client.keys("*places*"))


@pytest.fixture
def broker() -> Broker:
    return Broker()


TWO = Limit(key="k", most=2)


class TestPlaces:
    def test_no_more_are_handed_out_than_may_be_at_once(self, broker: Broker) -> None:
        lease, other = broker.lease(), broker.lease()
        broker.send(TWO, "a", "b", "c", "d")
        assert list(broker.take(lease, 1)) == ["a"]
        assert list(broker.take(other, 4)) == ["b"]
        assert broker.take(lease, 4) == {}
        assert limits.waiting(broker.client) == [{"queue": "cpu", "key": "k", "waiting": 2, "held": 2}]

    def test_what_waits_holds_nobody_else_up(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(TWO, *(f"k{number}" for number in range(20)))
        broker.send(Limit(key="other", most=1), "o1", "o2")
        broker.send(None, "free")
        assert list(broker.take(lease, 4)) == ["k0", "k1", "o1", "free"]

    def test_the_next_is_handed_out_as_a_place_becomes_free_in_the_order_they_came(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(TWO, "a", "b", "c", "d", "e")
        tags = broker.take(lease, 5)
        for done, expected in (("a", "c"), ("b", "d"), ("c", "e")):
            broker.done(lease, tags[done])
            taken = broker.take(lease, 5)
            assert list(taken) == [expected]
            tags |= taken
        for tag in (tags["d"], tags["e"]):
            broker.done(lease, tag)
        assert broker.take(lease, 5) == {}
        assert broker.left() == []

    def test_another_worker_hears_that_a_place_is_free(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(TWO, "a", "b", "c")
        tags = broker.take(lease, 5)
        listener = broker.client.pubsub(ignore_subscribe_messages=True)
        listener.subscribe("agentlink:wake:cpu")
        listener.get_message()
        broker.done(lease, tags["a"])
        lease.exchange(broker.client, (), (), 0)
        assert listener.get_message() is not None
        assert list(broker.take(broker.lease())) == ["c"]

    def test_the_urgent_come_first_then_the_old(self, broker: Broker) -> None:
        lease, one = broker.lease(), Limit(key="k", most=1)
        broker.send(one, "first")
        (tag,) = broker.take(lease, 5).values()
        broker.send(one, "low1", "low2")
        broker.send(one, "run", root="r")
        assert broker.take(lease, 5) == {}
        broker.send(one, "high", priority=7)
        order = []
        for _ in range(4):
            broker.done(lease, tag)
            ((name, tag),) = broker.take(lease, 5).items()
            order.append(name)
        assert order[0] == "high"
        assert [name for name in order if name.startswith("low")] == ["low1", "low2"]
        assert set(order) == {"high", "low1", "low2", "run"}

    def test_an_urgent_task_comes_before_what_has_a_place_now(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(TWO, "a", "b", "c")
        tags = broker.take(lease, 5)
        broker.done(lease, tags["a"])
        broker.send(None, "urgent", priority=5)
        assert list(broker.take(lease, 2)) == ["urgent", "c"]

    def test_keys_take_turns(self, broker: Broker) -> None:
        lease = broker.lease()
        for key in ("k", "l"):
            broker.send(Limit(key=key, most=4), *(f"{key}{number}" for number in range(8)))
        tags = broker.take(lease, 16)
        for tag in tags.values():
            broker.done(lease, tag)
        assert sorted(broker.take(lease, 4)) == ["k4", "k5", "l4", "l5"]

    def test_a_key_may_be_that_of_tasks_in_several_queues(self, broker: Broker) -> None:
        lease, one = broker.lease(), Limit(key="k", most=1)
        broker.send(one, "a")
        broker.send(one, "b", queue="io")
        tags = broker.take(lease)
        assert broker.take(lease, queue="io") == {}
        broker.done(lease, tags["a"])
        assert list(broker.take(lease, queue="io")) == ["b"]

    def test_many_of_a_key_are_set_apart_a_part_at_a_time(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(Limit(key="k", most=1), *(f"{number:03}" for number in range(300)))
        broker.send(None, "free")
        assert list(broker.take(lease, 2)) == ["000"]
        assert broker.next_due_s == 0.001
        assert list(broker.take(lease, 1)) == ["free"]
        assert queues.lengths(broker.client, ["cpu"]) == [{"name": "cpu", "waiting": 0, "delayed": 0, "limited": 299}]

    @pytest.mark.parametrize("key", ['", "', 'a"b\\', "ключ", "x" * 5000, "", "a\0b\1c", "😀" * 100])
    def test_a_key_may_be_any_text(self, broker: Broker, key: str) -> None:
        lease = broker.lease()
        broker.send(Limit(key=key, most=1), "a", "b")
        tags = broker.take(lease, 5)
        assert list(tags) == ["a"]
        (waiting,) = limits.waiting(broker.client)
        assert waiting["key"] == key or (len(waiting["key"]) == 83 and key.startswith(waiting["key"][:50]))
        broker.done(lease, tags["a"])
        assert list(broker.take(lease, 5)) == ["b"]


class TestEnds:
    """However a message ceases to be in flight, its place is free, and it keeps its turn."""

    def test_given_back_it_is_the_next_of_its_key(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(Limit(key="k", most=2), "a", "b", "c")
        for tag in broker.take(lease, 5).values():
            lease.give_back(tag)
        assert list(broker.take(lease, 5)) == ["a", "b"]

    def test_one_that_died_or_was_evicted_waits_for_a_place_with_what_is_told_of_it(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(Limit(key="k", most=2), "a", "b", "c")
        tags = broker.take(lease, 5)
        lease.give_back_evicted(tags["b"], 1, 1000)
        lease.give_back(tags["a"], counted=True)
        lease.exchange(broker.client, (), (), 0)
        assert len(limits.waiting(broker.client)) == 1
        assert set(broker.take(lease, 5)) == {"a", "b"}
        told = {one["headers"]["id"]: one for one in broker.messages}
        assert told["a"]["agentlink_deliveries"] == 1
        assert told["b"]["agentlink_evicted"] == [1, 1000]

    def test_a_dead_workers_places_are_free_with_its_lease(self, broker: Broker) -> None:
        dead = broker.lease(length_s=0.2)
        broker.send(TWO, "a", "b", "c")
        tags = broker.take(dead, 5)
        dead.started(tags["b"])
        dead.exchange(broker.client, (), (), 0)
        lease = broker.lease(length_s=0.2)
        assert broker.take(lease, 5) == {}

        def look() -> dict[str, str]:
            lease._beat(broker.client, begin=False)
            return broker.take(lease, 5)

        taken = wait_until(look, what="the end of the dead worker's lease")
        assert list(taken) == ["a", "b"]
        assert [one.get("agentlink_deliveries", 0) for one in broker.messages] == [0, 1]
        for tag in taken.values():
            broker.done(lease, tag)
        broker.done(lease, broker.take(lease, 5)["c"])
        assert broker.take(lease, 5) == {}
        assert broker.left() == []

    def test_a_worker_that_ends_leaves_no_place_held(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(TWO, "a", "b", "c")
        broker.take(lease, 5)
        lease.end()
        assert list(broker.take(broker.lease(), 5)) == ["a", "b"]

    def test_an_acknowledgement_sent_twice_frees_one_place(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(TWO, "a", "b", "c", "d")
        tags = broker.take(lease, 5)
        broker.done(lease, tags["a"])
        assert list(broker.take(lease, 5)) == ["c"]
        lease._waiting.acknowledged.append(int(tags["a"].rpartition("/")[2]))
        assert broker.take(lease, 5) == {}

    def test_one_that_was_revoked_needs_no_place_and_its_worker_is_told(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(Limit(key="k", most=1, interval_us=3_600_000_000), "a", "b", "c")
        for command in revoked.record_commands(["a", "b"], 60):
            broker.client.execute_command(*command)
        assert list(broker.take(lease, 5)) == ["a", "b", "c"]
        assert [one.get("agentlink_revoked") for one in broker.messages] == [True, True, None]

    def test_what_the_worker_is_told_reaches_those_who_know_of_the_revoked(self) -> None:
        told: list[str] = []
        channel: Any = SimpleNamespace(
            on_revoked=told.append, lease=SimpleNamespace(tag=str), qos=SimpleNamespace(in_hand=0, prefetch_count=0)
        )
        message = b'{"agentlink_revoked": true, "headers": {"id": "a"}, "properties": {}}'
        payload = Channel._payload(channel, Taken(number=1, key="cpu", message=message))
        assert told == ["a"]
        assert "agentlink_revoked" not in payload

    def test_a_letter_sent_again_has_its_limit(self, broker: Broker) -> None:
        marked = TWO.marked(json.dumps({"body": "", "headers": {"id": "a"}}), "a", 0)
        again = json.dumps(dead_letters._as_new(json.loads(f'{{"agentlink_deliveries": 2, {marked[1:]}')))
        assert again.startswith(marked[:60])

    def test_purged_they_are_gone(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(TWO, "a", "b", "c", "d")
        broker.send(None, "free")
        tags = broker.take(lease, 2)
        assert broker.take(lease, 0) == {}
        broker.take(lease, 1)
        broker.send(TWO, "e")
        names = queues.keys("cpu")
        assert broker.client.eval(_PURGE, 1 + len(names), DELAYED_PREFIX + "cpu", *names, "cpu") == 3
        assert broker.take(lease, 5) == {}
        broker.done(lease, tags["a"])
        broker.done(lease, tags["b"])
        assert broker.take(lease, 5) == {}
        assert broker.left() == []


class Simulation:
    """Workers that take, finish, give back and die as a dice says, and what must hold meanwhile."""

    KEYS: ClassVar = {"k": 1, "l": 2, "m": 5}

    def __init__(self, broker: Broker, seed: int) -> None:
        self.broker, self.dice = broker, random.Random(seed)
        self.sent: set[str] = set()
        self.finished: list[str] = []
        self.leases = [broker.lease() for _ in range(3)]
        self.in_hand: dict[Lease, dict[str, str]] = {lease: {} for lease in self.leases}

    def send(self) -> None:
        key = self.dice.choice([*self.KEYS, ""])
        task_id = f"{key}:{len(self.sent)}"
        self.sent.add(task_id)
        limit = Limit(key=key, most=self.KEYS[key]) if key else None
        priority, root = self.dice.choice([0, 0, 5]), self.dice.choice([None, "r", "s"])
        self.broker.send(limit, task_id, priority=priority, root=root, queue=self.dice.choice(["cpu", "io"]))

    def take(self, lease: Lease) -> None:
        taken = self.broker.take(lease, self.dice.randint(1, 4), self.dice.choice(["cpu", "io"]))
        for task_id, tag in taken.items():
            self.in_hand[lease][task_id] = tag
            if self.dice.random() < 0.5:
                lease.started(tag)

    def end_one(self, lease: Lease) -> None:
        if not self.in_hand[lease]:
            return
        task_id = self.dice.choice(sorted(self.in_hand[lease]))
        tag = self.in_hand[lease].pop(task_id)
        end = self.dice.choice(["finish", "finish", "give back", "die", "evict"])
        if end == "finish":
            lease.acknowledge(tag)
            self.finished.append(task_id)
        elif end == "evict":
            lease.give_back_evicted(tag, 1, 1000)
        else:
            lease.give_back(tag, counted=end == "die")

    def kill(self, lease: Lease) -> None:
        lease.exchange(self.broker.client, (), (), 0)  # what it has said of those that finished was heard
        self.broker.client.zadd(LEASES_KEY, {lease.worker: 1})
        self.leases.remove(lease)
        del self.in_hand[lease]
        heir = self.broker.lease()
        self.leases.append(heir)
        self.in_hand[heir] = {}

    def check(self) -> None:
        for key, most in self.KEYS.items():
            running = [it for hand in self.in_hand.values() for it in hand if it.startswith(f"{key}:")]
            assert len(running) <= most


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_limits_hold_and_each_message_is_finished_once(broker: Broker, seed: int) -> None:
    it = Simulation(broker, seed)
    for turn in range(400):
        lease = it.dice.choice(it.leases)
        if turn < 250 and it.dice.random() < 0.4:
            it.send()
        it.dice.choices([it.take, it.end_one, it.kill], weights=[10, 10, 1])[0](lease)
        it.check()
    for _ in range(20_000):
        if len(it.finished) == len(it.sent):
            break
        lease = it.dice.choice(it.leases)
        it.take(lease)
        it.end_one(lease)
        it.check()
    assert sorted(it.finished) == sorted(it.sent)
    for lease in it.leases:
        lease.exchange(broker.client, (), (), 0)
    assert broker.left() == []


class TestRates:
    def test_one_comes_when_it_is_due(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(Limit(key="k", interval_us=100_000), "a", "b", "c")
        begun_at = time.monotonic()
        order: list[str] = []
        while len(order) < 3 and time.monotonic() < begun_at + 5:
            taken = list(broker.take(lease, 5))
            assert len(taken) <= 1
            order += taken
            if len(order) < 3:
                assert broker.next_due_s is not None
                assert 0 < broker.next_due_s <= 0.101
            time.sleep(broker.next_due_s or 0)
        assert order == ["a", "b", "c"]
        assert 0.2 <= time.monotonic() - begun_at < 1

    def test_at_high_rates_some_come_together(self, broker: Broker) -> None:
        broker.send(Limit(key="k", interval_us=10_000, ahead_us=90_000), *(str(number) for number in range(50)))
        assert 10 <= len(broker.take(broker.lease(), 50)) <= 12

    def test_what_is_given_back_before_it_began_counts_once(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(Limit(key="k", interval_us=3_600_000_000), "a", "b")
        lease.give_back(broker.take(lease, 5)["a"])
        tags = broker.take(lease, 5)
        assert list(tags) == ["a"]
        lease.started(tags["a"])
        broker.take(lease, 0)
        lease.give_back(tags["a"], counted=True)
        assert broker.take(lease, 5) == {}

    def test_both_limits_hold(self, broker: Broker) -> None:
        lease = broker.lease()
        broker.send(Limit(key="k", most=1, interval_us=50_000), "a", "b", "c")
        tags = broker.take(lease, 5)
        assert list(tags) == ["a"]
        wait_until(lambda: not broker.client.exists("agentlink:limit:k:clock"), what="the time of the next")
        assert broker.take(lease, 5) == {}
        broker.done(lease, tags["a"])
        tags = broker.take(lease, 5)
        assert list(tags) == ["b"]
        broker.done(lease, tags["b"])
        assert broker.take(lease, 5) == {}


def _call(model: str, prompt: str = "none", *rest: Any, **more: Any) -> None: ...


def _key_of(key: Any, *args: Any, bind: bool = False, **kwargs: Any) -> str:
    declared = limits_of(_call, 1, None, key, {"bind": bind})
    assert declared is not None
    return declared.of_call("tests.call", args, kwargs).key


class TestDeclarations:
    @pytest.mark.parametrize(
        ("key", "args", "kwargs", "expected"),
        [
            pytest.param(None, ("m",), {}, "tests.call", id="the task's name"),
            pytest.param("model:{model}", ("m",), {}, "model:m", id="by place"),
            pytest.param("model:{model}", (), {"model": "m"}, "model:m", id="by name"),
            pytest.param("{prompt}", ("m",), {}, "none", id="default"),
            pytest.param("{more[user]}", ("m",), {"user": 7}, "7", id="others by name"),
            pytest.param("{model:.2}{{}}", ("mistral",), {}, "mi{}", id="format"),
            pytest.param("one", ("m",), {}, "one", id="the same for all"),
            pytest.param(lambda model, prompt, *_, **__: f"{model}/{len(prompt)}", ("m",), {}, "m/4", id="function"),
        ],
    )
    def test_the_key_of_a_call(self, key: Any, args: Any, kwargs: Any, expected: str) -> None:
        assert _key_of(key, *args, **kwargs) == expected

    def test_a_bound_tasks_own_self_is_no_argument(self) -> None:
        assert _key_of("{prompt}", "p", bind=True) == "p"

    @pytest.mark.parametrize(
        ("key", "words"),
        [
            pytest.param("{more[user]}", "can't be made of its arguments by '{more", id="nothing there"),
            pytest.param(lambda *_: 7, "want a text for the key of a call, got 7", id="no text"),
        ],
    )
    def test_a_call_whose_key_can_not_be_made_is_refused(self, key: Any, words: str) -> None:
        with pytest.raises(ValueError, match=r"^tests\.call: ") as refused:
            _key_of(key, "m")
        assert words in str(refused.value)

    @pytest.mark.parametrize(
        ("rate", "interval_us", "ahead_us"),
        [("60/m", 1_000_000, 0), ("5/s", 200_000, 0), ("1000/h", 3_600_000, 0), (" 100 / s", 10_000, 90_000)],
    )
    def test_rates(self, rate: str, interval_us: int, ahead_us: int) -> None:
        declared = limits_of(_call, None, rate, None, {})
        assert declared is not None
        assert declared.of_call("t", (), {}) == Limit(key="t", interval_us=interval_us, ahead_us=ahead_us)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"rate": "60"}, "want a rate like 5/s, 60/m or 1000/h, up to 1000000/s, got rate='60'"),
            ({"rate": "0/s"}, "got rate='0/s'"),
            ({"rate": 5}, "got rate=5"),
            ({"rate": "99999999/s"}, "got rate='99999999/s'"),
            ({"concurrency": 0}, "want a whole number of calls from 1 to 1000000, got concurrency=0"),
            ({"concurrency": True}, "got concurrency=True"),
            ({"concurrency": "3"}, "got concurrency='3'"),
            ({"concurrency": 1, "key": "{modle}"}, "names 'modle'; the task's parameters are: model"),
            ({"concurrency": 1, "key": "{}"}, "names ''; the task's parameters are: model"),
            ({"concurrency": 1, "key": "{model"}, "want a key like 'model:{model}', got key='{model'"),
            ({"concurrency": 1, "key": ""}, "or a function of the arguments, got key=''"),
            ({"concurrency": 1, "key": 7}, "or a function of the arguments, got key=7"),
            ({"key": "{model}"}, "says nothing without concurrency or rate"),
            ({"concurrency": 1, "acks_late": False}, "want acks_late with concurrency"),
        ],
    )
    def test_what_makes_no_sense_is_refused_where_it_is_declared(self, options: Any, words: str) -> None:
        with pytest.raises(ValueError, match=r"want|names|says") as refused:

            @task(name="tests.not_made", **options)
            def not_made(model: str) -> None: ...

        assert words in str(refused.value)
        assert "tests.not_made" not in app.tasks

    def test_a_workflow_has_none(self) -> None:
        with pytest.raises(ValueError, match="want concurrency and rate on a workflow's tasks"):
            workflow(concurrency=1)(_call).delay("m")

    def test_a_task_without_limits_has_none(self) -> None:
        assert sample.add.limits is None


def test_messages_without_limits_leave_no_trace(broker: Broker) -> None:
    lease = broker.lease()
    broker.send(None, "a", "b")
    tags = broker.take(lease, 5)
    lease.give_back(tags["b"])
    broker.done(lease, tags["a"])
    assert list(broker.take(lease, 5)) == ["b"]
    assert broker.left() == []
