"""What one call declares, in place of its task: it reaches the guard, on whichever way the call comes."""

from __future__ import annotations

from typing import Any

import pytest
from celery import chain, group

from resource_guard.errors import TaskTooLarge
from resource_guard.reservations import DECLARED_HEADER
from tasks import task
from tasks.errors import MemoryLimitExceeded
from tests.integration import sample
from tests.integration.hungry import declare_50_gb, take
from tests.integration.system import System, Worker
from workflows import workflow

IMPORTS = "tests.integration.sample,tests.integration.hungry,tests.integration.test_declared_calls"


@task(bind=True)
def declared_twice(self: Any) -> list[Any]:
    """What its second attempt was declared with."""
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    declared: list[Any] = getattr(self.request, DECLARED_HEADER)
    return declared


@workflow
def fits_by_its_call() -> Any:
    return chain(sample.add.si(1, 1), declare_50_gb.si().set(memory="1MB"), sample.add.si(2, 2))


def start(system: System) -> Worker:
    return system.start_worker(imports=IMPORTS, memory="1000MB", memory_free="0", cpu="100%")


def test_a_call_can_declare_more_or_less_than_its_task(system: System) -> None:
    start(system)
    with pytest.raises(TaskTooLarge, match="declares memory='50 GB'"):
        take.s(20).set(memory="50GB").delay().get(timeout=20)
    with pytest.raises(TaskTooLarge, match="declares cpu='1000 cores'"):
        take.apply_async((20,), cpu=1000).get(timeout=20)
    assert declare_50_gb.s().set(memory="1MB").delay().get(timeout=20) is None
    assert group(declare_50_gb.s().set(memory="1MB") for _ in range(2)).delay().get(timeout=20) == [None, None]
    assert fits_by_its_call.delay().get(timeout=20) == 4


def test_a_call_that_takes_more_than_it_declares_fails_with_what_it_declared(system: System) -> None:
    start(system)
    with pytest.raises(MemoryLimitExceeded) as caught:
        take.s(400).set(memory="50MB").delay().get(timeout=20)
    assert caught.value.declared_bytes == 50_000_000


def test_a_call_that_is_tried_again_still_declares_the_same(system: System) -> None:
    start(system)
    assert declared_twice.s().set(memory="5MB", cpu=0.5).delay().get(timeout=20) == [5_000_000, 0.5]


@pytest.mark.parametrize("options", [{"memory": "much"}, {"memory": -1}, {"cpu": 0}, {"cpu": -1}])
def test_what_makes_no_sense_is_refused_where_the_call_is_made(options: dict[str, Any], system: System) -> None:
    with pytest.raises(ValueError, match="want a"):
        take.apply_async((20,), **options)
    assert system.client.dbsize() == 0
