"""What `@task` makes of words about retries, and how attempts add up."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Task

from tasks import app, task
from tasks.base import BaseTask
from workflows import workflow


@pytest.fixture(autouse=True)
def _tasks_are_forgotten() -> Iterator[None]:
    known = set(app.tasks)
    yield
    for name in set(app.tasks) - known:
        app.tasks.unregister(name)


def _nothing() -> None:
    """What the tasks here do."""


def _task(**options: Any) -> Any:
    return task(name="tests.retries.made", **options)(_nothing)


def _numbers(made: Any) -> tuple[int, int | None, int, int]:
    return made.max_attempts, made.max_retries, made.retry_backoff, made.retry_backoff_max


def test_nothing_said_means_no_retry_and_three_attempts_for_a_process_that_dies() -> None:
    made = _task()
    assert (made.max_attempts, made.max_retries) == (3, 2)
    assert not hasattr(made, "autoretry_for")


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({"retry_for": OSError}, (3, 2, 1, 300)),
        ({"retry_for": [OSError], "max_attempts": 5}, (5, 4, 1, 300)),
        ({"retry_for": (OSError,), "retry_backoff": "2m", "retry_backoff_max": "1h"}, (3, 2, 120, 3600)),
        ({"retry_for": (OSError,), "retry_backoff": 10, "retry_backoff_max": 10.0}, (3, 2, 10, 10)),
        ({"retry_for": (OSError,), "retry_backoff": "1h"}, (3, 2, 3600, 3600)),
    ],
)
def test_words_become_celerys_options(options: dict[str, Any], numbers: tuple[int, int, int, int]) -> None:
    made = _task(**options)
    assert _numbers(made) == numbers
    assert made.autoretry_for == (OSError,)
    assert made.retry_jitter is True


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_attempts": 0}, r"want a whole number of attempts from 1 to 1000, got max_attempts=0"),
        ({"max_attempts": True}, r"got max_attempts=True"),
        ({"max_attempts": "3"}, r"got max_attempts='3'"),
        ({"retry_for": ()}, r"want exception classes like \(OSError, TimeoutError\), got retry_for=\(\)"),
        ({"retry_for": "OSError"}, r"got retry_for='OSError'"),
        ({"retry_for": (OSError, "x")}, r"got retry_for=\(<class 'OSError'>, 'x'\)"),
        ({"retry_for": KeyboardInterrupt}, r"want exception classes"),
        ({"retry_for": 5}, r"got retry_for=5"),
        (
            {"retry_for": OSError, "retry_backoff": "soon"},
            r"want whole seconds like 1s, 30s or 5m.*retry_backoff='soon'",
        ),
        ({"retry_for": OSError, "retry_backoff": "500ms"}, r"from 1s to 30d, got retry_backoff='500ms'"),
        ({"retry_for": OSError, "retry_backoff": 1.5}, r"got retry_backoff=1.5"),
        ({"retry_for": OSError, "retry_backoff_max": "31d"}, r"got retry_backoff_max='31d'"),
        (
            {"retry_for": OSError, "retry_backoff": "1m", "retry_backoff_max": "30s"},
            r"want retry_backoff_max of at least retry_backoff \(60s\), got '30s'",
        ),
        ({"retry_backoff": "1s"}, r"say nothing without retry_for"),
        ({"max_attempts": 3, "max_retries": 2}, r"want max_attempts and retry_for or Celery's max_retries, not both"),
        ({"retry_for": OSError, "autoretry_for": (OSError,)}, r"want retry_for or Celery's autoretry_for, not both"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        _task(**options)


def test_celerys_own_words_are_left_as_they_are() -> None:
    made = _task(autoretry_for=(OSError,), retry_backoff=True, retry_backoff_max=7, max_retries=9, retry_jitter=False)
    assert (made.autoretry_for, made.retry_backoff, made.retry_backoff_max) == ((OSError,), True, 7)
    assert (made.max_retries, made.max_attempts, made.retry_jitter) == (9, 3, False)


def test_retry_takes_what_celerys_takes() -> None:
    assert list(inspect.signature(BaseTask.retry).parameters) == list(inspect.signature(Task.retry).parameters)


def test_the_two_words_for_attempts_agree_however_a_task_is_made() -> None:
    class Patient(BaseTask):
        abstract = True
        max_attempts = 7

    plain = app.task(_nothing, name="tests.retries.plain", base=Patient)
    patient = workflow(name="tests.retries.patient", max_attempts=5)(_nothing)
    assert (Patient.max_retries, plain.max_retries, patient.max_retries) == (6, 6, 4)


@pytest.mark.parametrize(
    ("options", "retries", "deaths", "again"),
    [
        ({}, 0, 2, True),
        ({}, 0, 3, False),
        ({}, 1, 1, True),
        ({}, 1, 2, False),
        ({"max_attempts": 1}, 0, 1, False),
        ({"max_attempts": 5}, 2, 2, True),
        ({"max_attempts": 5}, 2, 3, False),
        ({"max_retries": None}, 1_000, 2, True),
        ({"max_retries": None}, 1_000, 3, False),
        ({"max_retries": 100}, 98, 2, True),
        ({"max_retries": 100}, 99, 2, False),
        ({"max_retries": 0}, 0, 1, False),
    ],
)
def test_attempts_that_ended_with_an_error_and_with_a_death_add_up(
    options: dict[str, Any], retries: int, deaths: int, again: bool
) -> None:
    assert _task(**options).begins_again(retries, deaths) is again
