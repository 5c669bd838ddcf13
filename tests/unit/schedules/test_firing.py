"""What a worker does with schedules, on a made clock."""

from __future__ import annotations

import json
from typing import Any

import fakeredis
import pytest

from agentlink.broker.errors import BrokerUnavailable
from agentlink.broker.publishing import _PUBLISH
from tests.unit.schedules.made import DAY_S, HOUR_S, MINUTE_S, NOON_S, WORKFLOW, Broker, Clock, next_s, put
from workflows import firing, schedules, store
from workflows.errors import WorkflowError
from workflows.firing import Firer
from workflows.schedule_definition import define
from workflows.schedule_turns import firing_commands


class TestFiring:
    def test_each_time_is_fired_once_whoever_looks(
        self, client: fakeredis.FakeRedis, broker: Broker, clock: Clock
    ) -> None:
        put(client)
        firers = [Firer(lambda: client) for _ in range(3)]
        for _ in range(5 * MINUTE_S):
            clock.now_s += 2
            for firer in firers:
                firer.look()
        assert len({run_id for _, run_id in broker.fired}) == len(broker.fired) == 10
        assert client.llen("cpu") == 10

    def test_a_worker_that_read_it_before_another_fired_is_refused(
        self, client: fakeredis.FakeRedis, broker: Broker, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(client)
        firer, read = Firer(lambda: client), schedules.read
        firer.look()
        clock.now_s += MINUTE_S

        def read_and_be_slow(*args: Any) -> schedules.Schedule:
            monkeypatch.setattr(schedules, "read", read)
            found = read(*args)
            Firer(lambda: client).look()
            return found

        monkeypatch.setattr(schedules, "read", read_and_be_slow)
        firer.look()
        assert len(broker.fired) == client.llen("cpu") == 1

    def test_a_worker_that_lost_the_answer_and_asks_again_is_told_it_was_accepted(
        self, client: fakeredis.FakeRedis
    ) -> None:
        put(client)
        due_ms = (NOON_S + MINUTE_S) * 1000
        also = [[str(part) for part in command] for command in firing_commands("s", due_ms, due_ms + 1, due_ms, "run")]
        publish = client.register_script(_PUBLISH)
        for call, answer in (("call", 1), ("call", 1), ("another", [b"overtaken"])):
            args = ["", "1000", json.dumps(also), "", "message", "", "wake"]
            assert publish(keys=[call, "cpu"], args=args) == answer
        assert client.llen("cpu") == 1
        assert schedules.read(client, "s").run_id == "run"

    def test_it_tells_when_it_fired_and_which_run(
        self, client: fakeredis.FakeRedis, broker: Broker, clock: Clock
    ) -> None:
        put(client)
        clock.now_s += MINUTE_S + 2
        Firer(lambda: client).look()
        found = schedules.read(client, "s")
        assert (found.run_id, found.fired_at) == (broker.fired[0][1], clock.now_s)
        assert next_s(client) == 2 * MINUTE_S  # counted from the time that was due

    def test_a_worker_looks_again_when_the_next_is_due_and_each_second(
        self, client: fakeredis.FakeRedis, broker: Broker, clock: Clock
    ) -> None:
        firer = Firer(lambda: client)
        assert firer.look() == 1.0
        put(client)
        assert firer.look() == 1.0
        clock.now_s += MINUTE_S - 0.25
        assert firer.look() == 0.25

    @pytest.mark.parametrize("words", [{"every": "1h"}, {"schedule": "0 * * * *", "timezone": "UTC"}])
    @pytest.mark.parametrize(("missed", "fired"), [("skip", 0), ("once", 1)])
    def test_missed_times(
        self, client: fakeredis.FakeRedis, broker: Broker, clock: Clock, words: Any, missed: str, fired: int
    ) -> None:
        put(client, missed=missed, **words)
        clock.now_s += 5 * HOUR_S + 120
        firer = Firer(lambda: client)
        firer.look()
        firer.look()
        assert len(broker.fired) == fired
        assert next_s(client) == 6 * HOUR_S

    @pytest.mark.parametrize("missed", ["skip", "once"])
    def test_a_time_less_than_a_minute_ago_is_late_not_missed(
        self, client: fakeredis.FakeRedis, broker: Broker, clock: Clock, missed: str
    ) -> None:
        put(client, every="10s", missed=missed)
        clock.now_s += MINUTE_S
        Firer(lambda: client).look()
        assert (len(broker.fired), next_s(client)) == (1, 70)

    def test_a_broker_that_is_away_loses_no_time(
        self, client: fakeredis.FakeRedis, broker: Broker, clock: Clock
    ) -> None:
        put(client)
        clock.now_s += MINUTE_S
        broker.away, firer = True, Firer(lambda: client)
        with pytest.raises(BrokerUnavailable):
            firer.look()
        broker.away = False
        firer.look()
        assert len(broker.fired) == 1

    def test_a_clock_set_back_runs_no_time_twice_and_stops_nothing(
        self, client: fakeredis.FakeRedis, broker: Broker, clock: Clock
    ) -> None:
        """The times come again, under the ids of the runs they have started already: those are not run again."""
        put(client, schedule="0 * * * *", timezone="UTC")
        firer = Firer(lambda: client)
        firer.look()
        clock.now_s += HOUR_S
        firer.look()
        clock.now_s -= HOUR_S - MINUTE_S
        firer.look()
        assert next_s(client) == HOUR_S
        clock.now_s += HOUR_S - MINUTE_S
        firer.look()
        assert len(broker.fired) == 2
        assert len({run_id for _, run_id in broker.fired}) == 1

    def test_a_clock_set_back_while_no_worker_was_there_is_noticed_at_the_next_start(
        self, client: fakeredis.FakeRedis, broker: Broker, clock: Clock
    ) -> None:
        clock.now_s += 365 * DAY_S
        put(client, "cron", schedule="0 * * * *", timezone="UTC")
        put(client, "interval", every="1h")
        clock.now_s -= 365 * DAY_S
        Firer(lambda: client).look()
        assert next_s(client, "cron") == next_s(client, "interval") == HOUR_S


class TestOverlap:
    """A run that takes longer than its schedule's interval."""

    def _goes_on(self, client: fakeredis.FakeRedis, run_id: str, state: str) -> None:
        client.hset(store.run_key(run_id), "state", state)

    @pytest.mark.parametrize(("overlap", "fired"), [("skip", 1), ("wait", 1), ("allow", 5)])
    def test_while_it_goes_on_no_other_begins_unless_that_is_allowed(
        self, client: fakeredis.FakeRedis, broker: Broker, clock: Clock, overlap: str, fired: int
    ) -> None:
        put(client, every="1m", overlap=overlap)
        firer = Firer(lambda: client)
        for _ in range(5):
            clock.now_s += MINUTE_S
            firer.look()
            self._goes_on(client, broker.fired[0][1], "RUNNING")
        assert len(broker.fired) == fired

    def test_times_left_out_are_counted_until_the_next_that_is_not(
        self, client: fakeredis.FakeRedis, broker: Broker, clock: Clock
    ) -> None:
        assert define("s", WORKFLOW, every="1m").overlap == "skip"
        put(client, every="1m")
        firer = Firer(lambda: client)
        for _ in range(4):
            clock.now_s += MINUTE_S
            firer.look()
            self._goes_on(client, broker.fired[0][1], "QUEUED")
        assert (schedules.read(client, "s").skipped, next_s(client)) == (3, 5 * MINUTE_S)
        self._goes_on(client, broker.fired[0][1], "FAILED")
        clock.now_s += MINUTE_S
        firer.look()
        assert (schedules.read(client, "s").skipped, len(broker.fired)) == (0, 2)

    def test_one_that_waits_is_fired_once_as_soon_as_the_run_has_ended(
        self, client: fakeredis.FakeRedis, broker: Broker, clock: Clock
    ) -> None:
        put(client, every="1m", overlap="wait")
        clock.now_s += MINUTE_S
        Firer(lambda: client).look()
        self._goes_on(client, broker.fired[0][1], "RUNNING")
        for _ in range(600):
            clock.now_s += 1
            Firer(lambda: client).look()
        assert schedules.read(client, "s").waits_ms == (NOON_S + 2 * MINUTE_S) * 1000
        self._goes_on(client, broker.fired[0][1], "SUCCEEDED")
        Firer(lambda: client).look()
        assert (len(broker.fired), next_s(client)) == (2, 12 * MINUTE_S)
        assert schedules.read(client, "s").waits_ms is None

    def test_one_that_was_missed_does_not_wait(self, client: fakeredis.FakeRedis, broker: Broker, clock: Clock) -> None:
        put(client, every="1h", overlap="wait")
        clock.now_s += HOUR_S
        Firer(lambda: client).look()
        self._goes_on(client, broker.fired[0][1], "RUNNING")
        clock.now_s += HOUR_S + 2 * MINUTE_S
        Firer(lambda: client).look()
        assert (next_s(client), schedules.read(client, "s").waits_ms) == (3 * HOUR_S, None)

    def test_a_run_by_hand_holds_back_the_next_too_and_hides_none(
        self, client: fakeredis.FakeRedis, broker: Broker, clock: Clock
    ) -> None:
        put(client, every="1m")
        clock.now_s += MINUTE_S
        Firer(lambda: client).look()
        timed_id = broker.fired[0][1]
        client.hset(schedules.schedule_key("s"), "run_id", "by hand")
        for by_hand, timed in (("RUNNING", "SUCCEEDED"), ("SUCCEEDED", "RUNNING")):
            self._goes_on(client, "by hand", by_hand)
            self._goes_on(client, timed_id, timed)
            clock.now_s += MINUTE_S
            Firer(lambda: client).look()
        assert (len(broker.fired), schedules.read(client, "s").skipped) == (1, 2)

    def test_what_was_kept_before_there_was_a_choice_is_read(self, client: fakeredis.FakeRedis) -> None:
        put(client)
        key = schedules.schedule_key("s")
        kept = json.loads(client.hget(key, "definition") or "")
        del kept["overlap"]
        client.hset(key, "definition", json.dumps(kept))
        assert schedules.read(client, "s").definition.overlap == "skip"


class TestWhatCanNotBeFired:
    def test_it_holds_up_no_other_and_is_said_once(
        self, client: fakeredis.FakeRedis, broker: Broker, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        put(client, "a", workflow="no.such", missed="once")
        put(client, "b")
        client.hset("agentlink:schedule:c", "definition", '{"of": "a version to come"}')
        client.zadd(schedules.INDEX_KEY, {"c": 1})
        firer = Firer(lambda: client)
        for _ in range(30):
            clock.now_s += 10
            firer.look()
        assert [args for args, _ in broker.fired] == ['["b"]'] * 5
        assert "no workflow is called no.such here" in (schedules.read(client, "a").error or "")
        assert client.hexists("agentlink:schedule:c", "error")
        assert [record.message.split(":")[0] for record in caplog.records if record.levelname == "ERROR"] == [
            "schedule c is not fired", "schedule a is not fired",
        ]  # fmt: skip

    def test_it_waits_for_a_worker_that_can_or_is_skipped(
        self, client: fakeredis.FakeRedis, broker: Broker, clock: Clock
    ) -> None:
        put(client, "makes-up", workflow="no.such", every="1h", missed="once")
        put(client, "skips", workflow="no.such", every="1h")
        firer = Firer(lambda: client)
        for after_s, expected_s in ((HOUR_S, HOUR_S), (30, HOUR_S), (31, 2 * HOUR_S)):
            clock.now_s += after_s
            firer.look()
            assert (next_s(client, "makes-up"), next_s(client, "skips")) == (HOUR_S, expected_s)
        assert schedules.read(client, "skips").error

    def test_the_next_that_is_fired_clears_the_error(
        self, client: fakeredis.FakeRedis, broker: Broker, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(client)

        def missing(name: str) -> None:
            raise firing.WorkflowMissing(name)

        with monkeypatch.context() as patch:
            patch.setattr(firing, "workflow_task", missing)
            clock.now_s += MINUTE_S + 5
            Firer(lambda: client).look()
            assert schedules.read(client, "s").error
        Firer(lambda: client).look()
        assert schedules.read(client, "s").error is None
        assert len(broker.fired) == 1

    def test_those_who_can_come_first(self, client: fakeredis.FakeRedis, broker: Broker, clock: Clock) -> None:
        """A worker with other modules than the schedule's says nothing while one that has them may be about to."""
        put(client, workflow="no.such")
        clock.now_s += MINUTE_S + 1
        Firer(lambda: client).look()
        assert schedules.read(client, "s").error is None

    def test_run_now_needs_a_schedule(self, client: fakeredis.FakeRedis) -> None:
        with pytest.raises(WorkflowError, match="no schedule is called 's'; known are: none"):
            firing.run_now(client, "s")
