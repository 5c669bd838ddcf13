"""Errors of tasks, on their way from a pool process to whoever waits for the result."""

from __future__ import annotations

import json
import pickle

import pytest
from celery import Celery
from celery.backends.base import Backend

from resource_guard.errors import TaskTooLarge
from tasks.errors import MemoryLimitExceeded, ProcessDied

ERRORS = [
    MemoryLimitExceeded("a.task", 130_000_000, 142_000_000, None, 100_000_000),
    MemoryLimitExceeded("a.task", 130_000_000, 142_000_000, 284_000_000, None),
    MemoryLimitExceeded("a.task", 700_000_000, 700_000_000, None, None),
    ProcessDied("a.task", "signal 9", 3),
    TaskTooLarge("a.task", "memory", 50_000_000_000, 700_000_000),
    TaskTooLarge("a.task", "cpu", 8.0, 2),
]


@pytest.mark.parametrize("error", ERRORS, ids=range(len(ERRORS)))
def test_they_come_back_from_the_result_store_and_from_another_process_as_they_were(error: Exception) -> None:
    store = Backend(app=Celery(set_as_current=False), serializer="json")
    stored = store.exception_to_python(json.loads(json.dumps(store.prepare_exception(error))))
    for back in (stored, pickle.loads(pickle.dumps(error))):
        assert type(back) is type(error)
        assert vars(back) == vars(error)
        assert str(back) == str(error) != ""


def test_a_task_may_catch_it_as_the_memory_error_it_is() -> None:
    assert isinstance(ERRORS[0], MemoryError)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ERRORS[0], "a.task had 130 MB and wanted more than 142 MB, which is what @task(memory='100 MB') allows"),
        (ERRORS[1], "it runs again when there is room for 284 MB"),
        (ERRORS[2], "which is all there is for tasks: make it smaller, or raise AGENTLINK_MEMORY"),
        (ERRORS[4], "a.task declares memory='50 GB', and there are 700 MB at most"),
        (ERRORS[5], "a.task declares cpu='8 cores', and there are 2 at most: declare less"),
    ],
    ids=["declared", "again", "all", "memory", "cores"],
)
def test_they_say_what_to_do(error: Exception, says: str) -> None:
    assert says in str(error)
