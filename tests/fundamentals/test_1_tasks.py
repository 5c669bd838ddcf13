"""Tasks: functions that workers run. These are Celery's tasks, and everything Celery says of them holds."""

from __future__ import annotations

import pytest

from tasks import BaseTask, task
from tests.integration.sample import add, fail


def test_a_task_is_a_function_that_can_still_be_called() -> None:
    assert add(2, 3) == 5


def test_delay_sends_it_to_a_worker_and_get_waits_for_its_result() -> None:
    assert add.delay(2, 3).get(timeout=20) == 5


def test_an_error_in_a_task_is_raised_by_get_with_its_type_and_message() -> None:
    with pytest.raises(ValueError, match="no such file"):
        fail.delay("no such file").get(timeout=20)


def test_a_task_may_declare_what_it_needs() -> None:
    @task(memory="1.5GB", cpu=2)
    def heavy() -> None: ...

    assert isinstance(heavy, BaseTask)
    assert (heavy.memory_bytes, heavy.cpu_cores) == (1_500_000_000, 2.0)


def test_a_declaration_that_makes_no_sense_is_refused_when_it_is_made() -> None:
    with pytest.raises(ValueError, match="want a size like 8GB or 512MiB, got 'much'"):
        task(memory="much")
    with pytest.raises(ValueError, match="want a number of cores above 0"):
        task(cpu=0)
