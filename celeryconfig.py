"""Every Celery setting, derived from AgentLink's own, each with its reason. Celery reads this module by its name."""

from __future__ import annotations

from agentlink.settings import load

_settings = load()

# -- Where: one server holds queues, results and runs.
broker_url = _settings.url
_backend = "SentinelResultBackend" if _settings.behind_sentinel else "ResultBackend"
result_backend = f"agentlink.broker.results:{_backend}+{_settings.result_url}"
# A server that has stopped answering is noticed by half of a call's deadline: the other half is for a second try.
_patience = {
    "socket_timeout": _settings.publish_timeout_s / 2,
    "socket_connect_timeout": _settings.publish_timeout_s / 2,
}
# A Sentinel that does not answer is not asked again (ten times, by default) before the next one is.
_sentinel = {"master_name": _settings.broker_master, "sentinel_kwargs": {**_patience, "retry": None}}
result_backend_transport_options = _sentinel if _settings.behind_sentinel else {}
broker_transport_options = {
    **_patience,
    **result_backend_transport_options,
    # A worker not heard of for this long is dead, and its messages are queued again. No task is too long for it.
    "lease_s": _settings.lease_s,
    # A list for each priority, 9 the most urgent, and another ten for messages of runs; Flower reads lengths by this.
    "priority_steps": list(range(20)),
}

# -- What: the tasks and workflows every worker knows, and its part in monitoring. `tasks` itself never imports these.
imports = ("tasks.command", "workflows", "agentlink.monitoring.in_worker", *_settings.imports)

# -- Messages: JSON only. Pickle runs whatever the sender put in, and the broker may be shared.
task_serializer = "json"
result_serializer = "json"
accept_content = ["json"]
result_accept_content = ["json"]
timezone = "UTC"
enable_utc = True

# -- Nothing is lost: a message is acknowledged after its task has ended, so that another worker can take it over.
task_acks_late = True
# What becomes of a task whose process dies, and of one delivered twice, is in the base task and its request.
# One message a process: what one worker hoards, another can't run, and a paused worker should hold nothing.
worker_prefetch_multiplier = 1

# -- Time limits: every task ends. The soft one raises SoftTimeLimitExceeded inside it, the hard one kills its process.
task_soft_time_limit = _settings.soft_time_limit_s
task_time_limit = _settings.hard_time_limit_s

# -- Results: kept for a while, with the facts that pages and handles show.
result_expires = int(_settings.keep_results_s)
redis_socket_timeout = 30  # stock waits two minutes on a server that has stopped answering

# -- Queues: `cpu` for work that needs a process of its own. Others are made as tasks name them.
task_default_queue = "cpu"
task_create_missing_queues = True

# -- Trouble with the broker: wait for it at start and again after it went away; a worker never gives up.
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
broker_connection_timeout = _settings.publish_timeout_s / 2

# -- Watching: events cost a third of the throughput, so none are sent until somebody (Flower) asks for them.
worker_send_task_events = False
worker_concurrency = _settings.concurrency
