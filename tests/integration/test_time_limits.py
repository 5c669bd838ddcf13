"""Every task ends, also one that does not want to."""

from __future__ import annotations

from typing import Any

import pytest
from celery.exceptions import TimeLimitExceeded

from tests.integration import sample
from tests.integration.system import System
from tests.waiting import wait_until


@pytest.mark.parametrize(
    "call",
    [sample.wait_for_a_second.si(), sample.wait_for_ever.si().set(time_limit=1)],
    ids=["limit of the task", "limit of the call"],
)
def test_a_hard_limit_alone_is_enough(system: System, call: Any) -> None:
    """Stock Celery starts its clock when the soft limit fires, by default an hour later."""
    worker = system.start_worker()
    result = call.apply_async()
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=10)
    assert sample.add.delay(1, 2).get(timeout=10) == 3
    wait_until(lambda: len(worker.children()) == 2, what="a new process for the one that was killed")
