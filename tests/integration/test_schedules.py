"""Schedules in the real broker, fired by real workers."""

from __future__ import annotations

import json
import os
import signal
import uuid
from pathlib import Path

import pytest

from agentlink.broker.errors import Overtaken
from tests.integration import declaring, sample, scheduled
from tests.integration.system import System
from tests.waiting import wait_until
from workflows import RunState, WorkflowRun, firing, schedule_turns, schedules, store
from workflows.schedule_definition import define

HOUR_MS = 3_600_000
MONDAY, SECOND = declaring.each_monday.name, declaring.each_second.name


def _put(system: System, name: str = "tick", *args: object, **words: object) -> None:
    timing = words or {"every": "1s"}
    schedules.put(system.client, name, define(name, scheduled.noted.name, args, **timing))  # type: ignore[arg-type]


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def _id_of(name: str, due_ms: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"agentlink:schedule:{name}/{due_ms}"))


def _due_ms(system: System, name: str = "tick") -> int:
    return int(system.client.zscore(schedules.INDEX_KEY, name) or 0)


def test_two_workers_fire_each_time_once_also_when_one_is_killed(system: System) -> None:
    """They take from another queue than the runs' starts go to: these can be counted."""
    workers = [system.start_worker("-Q", "io", imports=scheduled.IMPORTS, concurrency=1) for _ in range(2)]
    _put(system, "tick", "nowhere", every="1s", overlap="allow")
    first_ms = _due_ms(system)
    wait_until(lambda: system.client.llen("cpu") >= 3, what="three runs")
    workers[0].kill()
    wait_until(lambda: system.client.llen("cpu") >= 6, what="three more runs")
    schedules.pause(system.client, "tick")
    messages = [json.loads(message) for message in system.client.lrange("cpu", 0, -1)]
    started = [message["headers"]["id"] for message in messages]
    assert len(set(started)) == len(started)
    last_ms = first_ms + 60_000
    assert set(started) <= {_id_of("tick", due_ms) for due_ms in range(first_ms, last_ms, 1000)}
    assert {run.id for run in store.latest_runs(system.client, 100)} == set(started)
    assert schedules.read(system.client, "tick").run_id == started[0]


def test_a_time_that_was_fired_or_paused_meanwhile_is_refused_whole(system: System) -> None:
    """What a worker sends that had read the schedule before."""
    _put(system, "tick", "nowhere")
    definition, due_ms = schedules.read(system.client, "tick").definition, _due_ms(system)

    def fire(run_id: str) -> None:
        also = schedule_turns.firing_commands("tick", due_ms, due_ms + 1000, due_ms, run_id)
        firing.fire(definition, run_id, also)

    fire("first")
    with pytest.raises(Overtaken):
        fire("second")
    schedules.pause(system.client, "tick")
    due_ms += 1000
    with pytest.raises(Overtaken):
        fire("third")
    schedules.remove(system.client, "tick")
    with pytest.raises(Overtaken):
        fire("fourth")
    assert system.client.llen("cpu") == 1
    assert [run.id for run in store.latest_runs(system.client, 9)] == ["first"]
    assert not list(system.client.scan_iter("agentlink:schedule*"))


def test_its_runs_are_runs_like_others(system: System, path: Path) -> None:
    _put(system, "tick", str(path), "done")
    system.start_worker(imports=scheduled.IMPORTS)
    wait_until(lambda: _lines(path) >= 2, what="two runs")
    run_id = wait_until(lambda: schedules.read(system.client, "tick").run_id, what="the run's id")
    run = WorkflowRun(run_id)
    wait_until(lambda: run.progress.state is RunState.SUCCEEDED, what="its end")
    assert run.record().workflow == scheduled.noted.name
    assert "'done'" in run.record().arguments
    schedules.pause(system.client, "tick")


@pytest.mark.parametrize("overlap", ["skip", "wait"])
def test_its_runs_do_not_pile_up(system: System, path: Path, overlap: str) -> None:
    """Two workers, one of which is killed, and a run that takes longer than the interval."""
    workers = [system.start_worker(imports=scheduled.IMPORTS, lease="1s") for _ in range(2)]
    go = path.with_name("go")
    definition = define("tick", scheduled.held_up.name, [str(path), str(go)], every="1s", overlap=overlap)
    schedules.put(system.client, "tick", definition)
    wait_until(Path(f"{go}.waits").exists, what="the first run")
    first_ms = _due_ms(system)
    workers[0].kill()
    wait_until(lambda: schedules.server_ms(system.client) > first_ms + 3000, what="three more times")
    assert path.read_text().split() == ["begun"]
    found = schedules.read(system.client, "tick")
    assert found.skipped >= 2 if overlap == "skip" else found.waits_ms == first_ms
    go.touch()
    wait_until(lambda: path.read_text().split()[:4] == ["begun", "ended"] * 2, what="the next run")
    schedules.pause(system.client, "tick")
    assert len(store.latest_runs(system.client, 9)) <= 3


def test_it_survives_a_restart_of_the_worker_and_of_the_broker(system: System, path: Path) -> None:
    _put(system, "tick", str(path))
    worker = system.start_worker(imports=scheduled.IMPORTS)
    wait_until(lambda: _lines(path) >= 1, what="a run")
    system.restart_broker()
    before = _lines(path)
    wait_until(lambda: _lines(path) > before, what="a run after the broker's restart", timeout_s=20)
    worker.kill()
    system.restart_broker()
    before = _lines(path)
    system.start_worker(imports=scheduled.IMPORTS)
    wait_until(lambda: _lines(path) > before + 1, what="runs after everything's restart", timeout_s=20)
    schedules.pause(system.client, "tick")


def test_it_is_paused_and_changed_without_a_restart(system: System, path: Path) -> None:
    _put(system, "tick", str(path), "old")
    _put(system, "other", str(path), "other")
    system.start_worker(imports=scheduled.IMPORTS)
    wait_until(lambda: "old" in path.read_text(), what="a run")
    schedules.pause(system.client, "tick")
    fired_at = schedules.read(system.client, "tick").fired_at
    wait_until(lambda: path.read_text().count("other") >= 4, what="the other schedule's runs")
    assert schedules.read(system.client, "tick").fired_at == fired_at
    changed = define("tick", scheduled.noted.name, [str(path), "new"], every="2s")
    schedules.put(system.client, "tick", changed, replace=True)
    assert schedules.read(system.client, "tick").paused
    schedules.resume(system.client, "tick")
    wait_until(lambda: "new" in path.read_text(), what="a run of the changed schedule")
    schedules.remove(system.client, "tick")
    schedules.remove(system.client, "other")


def _miss(system: System, name: str, hours: int) -> None:
    system.client.zadd(schedules.INDEX_KEY, {name: schedules.server_ms(system.client) - hours * HOUR_MS})


def test_times_missed_while_no_worker_was_there_are_skipped_or_made_up_for_once(system: System, path: Path) -> None:
    _put(system, "skips", str(path), "skips", every="1h")
    _put(system, "makes-up", str(path), "makes-up", every="1h", missed="once")
    _miss(system, "skips", 5)
    _miss(system, "makes-up", 5)
    worker = system.start_worker(imports=scheduled.IMPORTS)
    wait_until(lambda: _lines(path), what="the run that makes up")
    now_ms = schedules.server_ms(system.client)
    wait_until(lambda: _due_ms(system, "skips") > now_ms, what="the skip")
    assert now_ms < _due_ms(system, "makes-up") <= now_ms + HOUR_MS
    worker.stop()
    assert path.read_text().split() == ["makes-up"]
    assert schedules.read(system.client, "skips").run_id is None


def test_a_schedule_whose_workflow_no_worker_knows_says_so_and_holds_up_none(system: System, path: Path) -> None:
    schedules.put(system.client, "gone", define("gone", "no.such.workflow", every="1s", missed="once"))
    _put(system, "tick", str(path))
    worker = system.start_worker(imports=scheduled.IMPORTS)
    wait_until(lambda: schedules.read(system.client, "gone").error, what="its error")
    assert "no workflow is called no.such.workflow here" in (schedules.read(system.client, "gone").error or "")
    wait_until(lambda: _lines(path) >= 6, what="the other's runs")
    assert worker.log.count("schedule gone is not fired") == 1
    schedules.remove(system.client, "gone")
    schedules.remove(system.client, "tick")


def test_a_worker_that_slept_goes_on_with_the_times_to_come(system: System, path: Path) -> None:
    worker = system.start_worker(imports=scheduled.IMPORTS)
    _put(system, "hourly", str(path), "hourly", every="1h")
    os.kill(worker.pid, signal.SIGSTOP)
    _miss(system, "hourly", 3)
    os.kill(worker.pid, signal.SIGCONT)
    wait_until(lambda: _due_ms(system, "hourly") > schedules.server_ms(system.client), what="its next time")
    assert _lines(path) == 0
    schedules.remove(system.client, "hourly")


class TestDeclared:
    def test_what_code_declares_runs(self, system: System) -> None:
        system.start_worker(imports=declaring.IMPORTS)
        wait_until(lambda: schedules.names(system.client) == [MONDAY, SECOND], what="both")
        wait_until(lambda: schedules.read(system.client, SECOND).run_id, what="a run")
        monday = schedules.read(system.client, MONDAY)
        assert (monday.declared, monday.changed, monday.definition.missed) == (True, False, "once")
        assert firing.run_now(system.client, MONDAY).get(timeout=20) == 2 * 4  # completed as it was declared, not again

    def test_what_a_person_has_set_stays(self, system: System) -> None:
        worker = system.start_worker(imports=declaring.IMPORTS)
        wait_until(lambda: schedules.names(system.client) == [MONDAY, SECOND], what="both")
        schedules.pause(system.client, SECOND)
        changed = define(MONDAY, MONDAY, schedule="@daily", timezone="UTC")
        schedules.put(system.client, MONDAY, changed, replace=True)
        before = schedules.read_all(system.client)
        worker.stop()
        again = system.start_worker(imports=declaring.IMPORTS)
        schedules.put(system.client, "proof", define("proof", MONDAY, every="1h"))
        _miss(system, "proof", 2)  # a worker that has skipped it has told before what its code declares
        again.wait_for_log("schedule proof: its time")
        after = [schedule for schedule in schedules.read_all(system.client) if schedule.name != "proof"]
        assert after == before

    def test_a_declaration_that_has_gone_from_the_code_goes(self, system: System) -> None:
        name = sample.immediate.name
        schedules.declare(system.client, name, define(name, name, [1], every="1h"))
        system.start_worker()
        wait_until(lambda: schedules.names(system.client) == [], what="its end")
        assert not system.client.exists(schedules.schedule_key(name))
