"""How the guard reaches Celery, and that the private parts it relies on are still there."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.concurrency.prefork import TaskPool as ProcessPool
from celery.concurrency.solo import TaskPool as SoloPool
from celery.worker.consumer import Consumer as WorkerConsumer
from kombu import Connection, Consumer, Queue
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual

from agentlink.errors import SettingsError
from agentlink.settings import Settings
from resource_guard import Resource, Valve
from resource_guard.celery_step import (
    GateStep,
    GuardStep,
    Links,
    _pool_size,
    give_back_while_closed,
    hold_while_closed,
    install,
)

QUEUE = Queue("guarded")
LINKS = Links(knowledge=lambda: None, broker=lambda: None, running_tags=set)  # type: ignore[arg-type, return-value]


@pytest.fixture
def channel() -> Iterator[Any]:
    with Connection("memory://") as connection:
        yield connection.default_channel


def settings(**fields: Any) -> Settings:
    return Settings.model_construct(**{**Settings().model_dump(), **fields})


@pytest.mark.parametrize("times", [1, 2])
def test_install_adds_both_steps_to_every_worker(times: int) -> None:
    """Once or twice: the worker is guarded once, by the limits of the settings."""
    with Celery("guarded", set_as_current=False) as app:
        chosen = settings(memory_bytes=300_000_000, memory_soft_fraction=0.85, guard_interval_s=0.2)
        for _ in range(times):
            install(app, chosen, LINKS)
        assert app.steps == {"worker": {GuardStep}, "consumer": {GateStep}}
        setup = app.guard_setup
        assert (setup.limits.memory_bytes, setup.limits.marks[Resource.MEMORY].pause) == (300_000_000, 0.85)
        assert (setup.settings, setup.links) == (chosen, LINKS)


def test_install_leaves_an_app_alone_when_the_guard_is_off() -> None:
    """`AGENTLINK_GUARD=0` gives plain Celery."""
    with Celery("unguarded", set_as_current=False) as app:
        install(app, settings(guard=False), LINKS)
        assert not any(app.steps.values())


def test_limits_that_contradict_each_other_are_an_error_of_settings() -> None:
    """It is the user's to mend, so it reads like every other problem with the settings."""
    with (
        Celery("wrong", set_as_current=False) as app,
        pytest.raises(SettingsError, match="marks of memory: want 0 < resume"),
    ):
        install(app, settings(memory_resume_fraction=0.0), LINKS)


def test_a_channel_takes_nothing_while_the_valve_is_closed(channel: Any) -> None:
    """A real channel and consumer: the message stays in its queue until the valve opens."""
    valve = Valve()
    taken: list[Any] = []
    hold_while_closed(valve, channel)
    with Consumer(channel, QUEUE, on_message=taken.append):
        valve.pause("memory")
        channel.connection.client.SimpleQueue("guarded").put("work")
        with pytest.raises(virtual.base.Empty):
            channel.drain_events(timeout=0)
        assert not taken
        valve.resume("room again")
        channel.drain_events(timeout=0)
        assert [message.payload for message in taken] == ["work"]
        taken[0].ack()


def test_an_open_valve_grants_no_more_than_the_channels_own_credit(channel: Any) -> None:
    """The prefetch limit holds as before."""
    hold_while_closed(Valve(), channel)
    channel.qos.prefetch_count = 1
    assert channel.qos.can_consume()
    channel.qos._delivered["tag"] = object()
    assert not channel.qos.can_consume()
    channel.qos._delivered.clear()


def test_a_message_that_still_arrives_while_closed_goes_back_to_its_queue(channel: Any) -> None:
    """The reply to a request sent before the pause: not run, not kept, not lost."""
    valve = Valve()
    run: list[Any] = []
    on_message = give_back_while_closed(valve, lambda: run.append)()
    with Consumer(channel, QUEUE, on_message=on_message):
        channel.connection.client.SimpleQueue("guarded").put("work")
        valve.pause("memory")
        channel.drain_events(timeout=0)
        assert not run
        assert channel._size("guarded") == 1
        valve.resume("room again")
        channel.drain_events(timeout=0)
        assert [message.payload for message in run] == ["work"]
        run[0].ack()


def test_the_size_of_a_pool_is_known_before_it_starts_and_asked_each_time() -> None:
    """A pool of processes has none until then, and may grow later."""
    pool = ProcessPool(3)
    worker = SimpleNamespace(pool=pool, concurrency=3)
    assert _pool_size(worker) == 3
    pool._pool = SimpleNamespace(_processes=5)
    assert _pool_size(worker) == 5
    assert _pool_size(SimpleNamespace(pool=SoloPool(1), concurrency=4)) == 1


# -- Contracts with kombu 5.7 and Celery 5.7: private parts that `celery_step` relies on.


class FakeClient:
    """Its connected client."""

    def __init__(self) -> None:
        self.connection = SimpleNamespace(_sock=object())


class FakeChannel:
    """A channel of kombu's Redis transport as its poller sees it, which records when it would send BRPOP."""

    active_queues = ("celery",)
    active_fanout_queues = ()

    def __init__(self) -> None:
        self.has_credit = True
        self.sent = 0
        self.qos = SimpleNamespace(can_consume=lambda: self.has_credit)
        self._in_poll: object = None
        self.client = FakeClient()

    def _brpop_start(self) -> None:
        self.sent += 1
        self._in_poll = self.client.connection


def test_the_redis_poller_sends_no_request_while_the_valve_is_closed() -> None:
    """Contract: `MultiChannelPoller` asks `channel.qos.can_consume()` before each BRPOP."""
    poller, channel, valve = kombu_redis.MultiChannelPoller(), FakeChannel(), Valve()
    poller.add(channel)
    poller._chan_to_sock[channel, channel.client, "BRPOP"] = channel.client.connection._sock
    hold_while_closed(valve, channel)
    valve.pause("memory")
    poller.on_poll_start()
    assert channel.sent == 0
    valve.resume("room again")
    poller.on_poll_start()
    assert channel.sent == 1
    poller.close()


def test_the_redis_poller_reads_the_reply_to_a_request_sent_before_the_pause() -> None:
    """Contract: while `_in_poll` is set the reply is read; left in the socket it would be lost with the worker."""
    poller, channel, valve = kombu_redis.MultiChannelPoller(), FakeChannel(), Valve()
    read: list[str] = []
    channel.handlers = {"BRPOP": lambda: read.append("reply")}  # type: ignore[attr-defined]
    poller._fd_to_chan[7] = (channel, "BRPOP")
    hold_while_closed(valve, channel)
    channel._in_poll = channel.client.connection
    valve.pause("memory")
    poller.on_readable(7)
    assert read == ["reply"]
    channel.has_credit = False
    assert not channel.qos.can_consume()
    poller.close()


def test_the_names_that_are_wrapped_still_exist() -> None:
    """Contract: a new kombu or Celery that renames one of these fails here, not in a worker under pressure."""
    assert callable(virtual.QoS.can_consume)
    assert issubclass(kombu_redis.QoS, virtual.QoS)
    assert "can_consume" not in vars(kombu_redis.QoS)
    assert "_in_poll" in vars(kombu_redis.Channel)
    assert "self._in_poll = " in inspect.getsource(kombu_redis.Channel._brpop_start)
    assert "self._in_poll = None" in inspect.getsource(kombu_redis.Channel._brpop_read)
    assert callable(WorkerConsumer.create_task_handler)
