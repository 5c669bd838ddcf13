"""What `@task(concurrency=, rate=, key=)` may say, and the key of a call."""

from __future__ import annotations

from typing import Any

import pytest

from agentlink.broker.limits import Limit
from tasks import app, task
from tasks.limits import limits_of
from tests.integration import sample
from workflows import workflow


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
