"""Metrics as Prometheus reads them: they say what is, at once, and nothing of what is gone."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError

import psutil
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from agentlink.broker.outcomes import NAMES_MAX
from agentlink.monitoring import metrics, workers
from agentlink.monitoring.metric_list import sample_names
from tests.integration import sample
from tests.integration.conftest import running_system
from tests.integration.system import REPOSITORY, System, Worker
from tests.promtool import needs_promtool, promtool
from tests.waiting import wait_until
from workflows import RunState, WorkflowRun, store
from workflows.recording import creation_commands

FRESH_WITHIN_S = 1.0
#: A worker that is killed is not in the metrics any more after this.
GONE_WITHIN_S = workers.SILENT_S + 1.0

Labels = frozenset[tuple[str, str]]
#: What is there only where something is so: no worker has ended a thing, no limit is set, …
AT_TIMES = {"agentlink_worker_stalled_ratio", "agentlink_event_lag_seconds", "agentlink_tasks_running"}


def scrape(text: str | None = None) -> dict[tuple[str, Labels], float]:
    families = text_string_to_metric_families(text or metrics.text().decode())
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def value(name: str, **labels: str) -> float | None:
    return scrape().get((f"agentlink_{name}", frozenset(labels.items())))


@pytest.fixture(scope="class")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker that has had runs and tasks of every end."""
    with running_system(tmp_path_factory.mktemp("busy")) as system:
        worker = system.start_worker()
        assert sample.sums.delay(3).get(timeout=20) == 1006
        sample.fail.delay("no").get(timeout=20, propagate=False)
        failed = sample.one_fails.delay("no")
        wait_until(lambda: failed.progress.ended, what="its end")
        sample.add.apply_async((1, 1), countdown=1000)
        ends = {"task": sample.fail.name, "outcome": "failed"}
        wait_until(lambda: value("tasks_ended_total", **ends) == 2, what="both failures")
        yield worker
        system.client.delete("agentlink:delayed:cpu")


@pytest.mark.usefixtures("busy")
class TestOfOneWorker:
    def test_every_metric_is_there_and_no_other(self) -> None:
        names = {name for name, _ in scrape()}
        assert names <= sample_names().keys()
        assert sample_names().keys() - names <= AT_TIMES

    @needs_promtool
    def test_prometheus_finds_nothing_to_mend(self) -> None:
        promtool("check", "metrics", text=metrics.text())

    def test_what_has_ended_and_how_long_it_took(self) -> None:
        assert value("runs", state="succeeded") == value("runs", state="failed") == 1
        assert value("runs_ended_total", workflow=sample.sums.name, state="succeeded") == 1
        assert value("run_running_seconds_count", workflow=sample.sums.name) == 1
        assert value("run_running_seconds_bucket", workflow=sample.sums.name, le="+Inf") == 1
        assert value("task_running_seconds_count", task=sample.add.name) == value(
            "tasks_ended_total", task=sample.add.name, outcome="succeeded"
        )
        assert 0 < (value("task_waiting_seconds_sum", task=sample.add.name) or 0) < 20

    def test_buckets_add_up(self) -> None:
        """Prometheus wants in each bucket all that took no longer."""
        buckets = [
            (float(dict(labels)["le"]), count)
            for (name, labels), count in scrape().items()
            if name == "agentlink_task_running_seconds_bucket" and ("task", sample.add.name) in labels
        ]
        counts = [count for _, count in sorted(buckets)]
        assert counts == sorted(counts)
        assert counts[-1] == value("task_running_seconds_count", task=sample.add.name)

    def test_what_a_worker_takes_and_may_take(self, busy: Worker) -> None:
        name = f"{busy.name}@test"
        assert value("workers") == 1
        assert value("worker_info", worker=name, host=_host(name), pid=str(busy.pid)) == 1
        assert value("worker_slots_max", worker=name) == 2
        assert value("worker_paused", worker=name) == 0
        taken, limit = (
            value(f"worker_resource_{what}", worker=name, resource="memory") for what in ("bytes", "limit_bytes")
        )
        assert taken
        assert limit
        assert value("worker_resource_used_ratio", worker=name, resource="memory") == pytest.approx(
            taken / limit, rel=0.2
        )

    def test_what_waits(self) -> None:
        assert value("queue_messages", queue="cpu", state="delayed") == 1
        assert value("queue_messages", queue="cpu", state="waiting") == 0
        assert value("queue_oldest_age_seconds", queue="cpu") == 0


def _host(worker: str) -> str:
    return next(
        dict(labels)["host"] for name, labels in scrape() if ("worker", worker) in labels and "host" in dict(labels)
    )


def test_without_workers_what_waits_is_still_told(system: System) -> None:
    sample.add.delay(1, 1)
    called_at = time.time()  # it has been queued by now
    assert value("workers") == 0
    assert value("queue_messages", queue="cpu", state="waiting") == 1
    wait_until(lambda: time.time() > called_at + 0.3, what="a moment")
    assert 0.3 <= (value("queue_oldest_age_seconds", queue="cpu") or 0) < 5


def test_a_broker_that_is_away_or_frozen_is_told_at_once(system: System) -> None:
    """Flower answers others meanwhile: it must not wait for long."""
    registry = metrics.registry()

    def up() -> float:
        return scrape(generate_latest(registry).decode())["agentlink_broker_up", frozenset()]

    assert up() == 1
    with system.frozen_broker():
        began_at = time.monotonic()
        assert up() == 0
        assert time.monotonic() - began_at < 2
    wait_until(lambda: up() == 1, what="the broker again")
    system.restart_broker()
    wait_until(lambda: up() == 1, what="the broker again, after a restart")


def test_what_happens_is_in_the_metrics_within_a_second(system: System, tmp_path: Path) -> None:
    system.start_worker()
    sample.add.delay(0, 0).get(timeout=20)
    ended = ("tasks_ended_total", {"task": sample.twice.name, "outcome": "succeeded"})
    late_s = []
    for number in range(5):
        sample.twice.delay(1).get(timeout=20)
        late_s.append(_seconds_until(lambda number=number: value(ended[0], **ended[1]) == number + 1))  # type: ignore[misc]
    started = tmp_path / "started"
    sample.wait_for_file.delay(str(tmp_path / "go"), started=str(started))
    wait_until(started.exists, what="its start")
    late_s.append(_seconds_until(lambda: value("tasks_running", task=sample.wait_for_file.name) == 1))
    (tmp_path / "go").touch()
    assert max(late_s) < FRESH_WITHIN_S + 0.3, late_s  # and what a scrape and a busy machine take
    assert sorted(late_s)[len(late_s) // 2] < FRESH_WITHIN_S, late_s


def _seconds_until(ready: Callable[[], bool]) -> float:
    began_at = time.monotonic()
    wait_until(ready, what="the metric")
    return time.monotonic() - began_at


def test_a_worker_that_is_gone_is_in_no_series(system: System) -> None:
    killed, stopped = system.start_worker(), system.start_worker()
    wait_until(lambda: value("workers") == 2, what="both workers")
    assert stopped.stop() == 0
    assert not any(("worker", f"{stopped.name}@test") in labels for _, labels in scrape())
    killed.kill()
    wait_until(
        lambda: not any("worker" in dict(labels) for _, labels in scrape()),
        what="no series of the killed worker",
        timeout_s=GONE_WITHIN_S,
    )
    assert value("workers") == 0


def test_labels_are_bounded(system: System) -> None:
    """Whatever names agents make up."""
    for number in range(NAMES_MAX + 20):
        run_id = f"run-{number}"
        with system.client.pipeline() as pipe:
            for command in created(run_id, f"made.up{number}"):
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]
            pipe.execute()
    for number in range(NAMES_MAX + 20):
        WorkflowRun(f"run-{number}").cancel()
    named = {dict(labels)["workflow"] for name, labels in scrape() if name == "agentlink_runs_ended_total"}
    assert len(named) == NAMES_MAX + 1
    assert value("runs_ended_total", workflow="other", state="cancelled") == 20


def created(run_id: str, workflow: str) -> list[list[object]]:
    return [list(command) for command in creation_commands(run_id, workflow, "", None)]


def test_a_scrape_of_ten_thousand_runs_is_quick(system: System) -> None:
    with system.client.pipeline(transaction=False) as pipe:
        for number in range(10_000):
            for command in created(f"run-{number}", "made.up"):
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]
        pipe.execute()
    assert store.count_runs(system.client)[RunState.QUEUED] == 10_000
    took_s = []
    for _ in range(5):
        began_at = time.perf_counter()
        assert value("runs", state="queued") == 10_000
        took_s.append(time.perf_counter() - began_at)
    assert min(took_s) < 0.1, took_s


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        text: str = answer.read().decode()
    return text


def test_a_worker_serves_metrics_at_a_port_of_its_own(system: System) -> None:
    """On the loopback; where it is taken, by another worker, that one has it until it ends."""
    first = system.start_worker(metrics_port="0")
    first.wait_for_log("metrics are at http://127.0.0.1:")
    url = first.log.partition("metrics are at ")[2].split()[0]
    port = url.rpartition(":")[2].partition("/")[0]
    second = system.start_worker(metrics_port=port)
    wait_until(lambda: scrape(fetch(url))["agentlink_workers", frozenset()] == 2, what="both workers")
    assert "metrics are at" not in second.log
    first.stop()
    second.wait_for_log(f"metrics are at {url}")
    assert scrape(fetch(url))["agentlink_workers", frozenset()] == 1


def test_without_the_setting_no_port_is_open(system: System) -> None:
    worker = system.start_worker()
    assert not [one for one in psutil.Process(worker.pid).net_connections("inet") if one.status == psutil.CONN_LISTEN]


def test_flower_has_them_beside_its_own(system: System) -> None:
    """At the same address, for the same readers."""
    system.start_worker()
    with running_flower(system) as url:
        text = wait_until(lambda: _text_with(url, "agentlink_workers 1.0"), what="our metrics", timeout_s=20)
        assert "flower_worker_online" in text


def _text_with(url: str, line: str) -> str:
    try:
        text = fetch(f"{url}/metrics")
    except (HTTPError, OSError):
        return ""
    return text if line in text else ""


@contextmanager
def running_flower(system: System, *options: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "celery", "--quiet", "-A", "agentlink.app", "flower"]
    command += ["--address=127.0.0.1", f"--port={port}", *options]
    with (system.folder / "flower.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=system.environment(), stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)
