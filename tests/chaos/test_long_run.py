"""The worker of a run of two thousand steps is killed every two seconds: it completes, and nothing done runs again."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from tests.integration import steered
from tests.integration.conftest import running_system
from tests.integration.system import System
from workflows import StepState, WorkflowRun

#: Chains of eleven in chords of nine in a chain of twenty: 20 × (9 × 11 + 1) steps.
LINKS, WIDE, DEEP = 20, 9, 11
STEPS = LINKS * (WIDE * DEEP + 1)
KILL_EVERY_S = 2.0
CONCURRENCY = 2
LEASE_S = 1.0
#: Of each kill: the lease that has to end, and the third of one after which that is seen.
LOST_S = LEASE_S * 4 / 3

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]


def _start_worker(system: System) -> float:
    """Start one; the seconds that took."""
    began_at = time.monotonic()
    imports = "tests.integration.sample,tests.integration.steered"
    system.start_worker(imports=imports, lease=f"{LEASE_S}s", cpu="100%", concurrency=CONCURRENCY)
    return time.monotonic() - began_at


def _begun(ledger: Path) -> Counter[str]:
    return Counter(ledger.read_text().split())


def _succeeded(run: WorkflowRun) -> set[str]:
    return {step.id for step in run.steps() if step.state is StepState.SUCCEEDED}


def _call(ledger: Path) -> WorkflowRun:
    ledger.touch()
    return steered.long_run.delay(str(ledger), LINKS, WIDE, DEEP)


def test_a_long_run_survives_kills_every_two_seconds(tmp_path: Path) -> None:
    with running_system(tmp_path) as system:
        _start_worker(system)
        began_at = time.monotonic()
        _call(tmp_path / "in peace").get(timeout=120)
        peace_s = time.monotonic() - began_at

        ledger = tmp_path / "ledger"
        starting_s, at_kills = 0.0, list[tuple[set[str], Counter[str]]]()
        began_at = time.monotonic()
        run = _call(ledger)
        while not run.ready():
            time.sleep(KILL_EVERY_S)  # that is what is asked of it
            if run.ready():
                break
            at_kills.append((_succeeded(run), _begun(ledger)))
            system.workers[-1].kill()
            starting_s += _start_worker(system)
        run.get(timeout=60)
        took_s = time.monotonic() - began_at
        begun, steps, kills = _begun(ledger), run.steps(), len(at_kills)
        twice = sum(count - 1 for count in begun.values())
        print(
            f"\n{len(steps)} steps, {kills} kills, {twice} begun again; {took_s:.1f} s, in peace {peace_s:.1f} s, "
            f"workers took {starting_s:.1f} s to start"
        )
        assert len(begun) == STEPS
        assert {step.state for step in steps} == {StepState.SUCCEEDED}
        assert kills > 0
        for finished, begun_by_then in at_kills:
            assert all(begun[step] == begun_by_then[step] for step in finished)
        assert twice <= kills * CONCURRENCY
        assert took_s <= 2 * peace_s + starting_s + kills * LOST_S
