"""Whatever canvas Celery's own integration tests try answers here as it does there: sent as it is, or as a run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration import celery_shapes
from tests.integration.celery_shapes import OF_RUNS, SHAPES, built
from tests.integration.conftest import running_system
from tests.integration.system import System
from workflows import RunState


@pytest.fixture(scope="module", autouse=True)
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("system")) as system:
        system.start_worker(imports=celery_shapes.IMPORTS)
        yield system


@pytest.mark.parametrize("shape", SHAPES)
def test_sent_as_it_is(shape: str) -> None:
    build, answer = SHAPES[shape]
    assert build().apply_async().get(timeout=20, interval=0.02) == answer


@pytest.mark.parametrize("shape", SHAPES | OF_RUNS)
def test_as_a_run(shape: str) -> None:
    run = built.delay(shape)
    assert run.get(timeout=20) == (SHAPES | OF_RUNS)[shape][1]
    assert run.progress.state is RunState.SUCCEEDED
