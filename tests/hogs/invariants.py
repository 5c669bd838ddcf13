"""What must hold, each as a list of the violations found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.hogs.load import Call
from tests.hogs.watch import Watch

MEMORY_BYTES = 1_500_000_000
#: Mean of 10 s: what is allowed, and a twentieth of it for what is measured in other moments.
CPU_FRACTION = 0.63
#: Of the sampler: how far apart nearly all looks may be.
GAP_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What has become of a call: its state, its value or its error, and how often it began."""

    call: Call
    state: str
    value: Any
    attempts: int

    @property
    def ending(self) -> str:
        """One word for it."""
        if self.state == "SUCCESS":
            return "completed" if self.value == self.call.answer else "wrong"
        return type(self.value).__name__ if self.state == "FAILURE" else self.state

    def __str__(self) -> str:
        return f"{self.call.name}, begun {self.attempts} times: {self.ending} {str(self.value)[:200]}"


def memory_stays_under_its_limit(watch: Watch) -> Iterator[str]:
    """In no sample above it."""
    above = [sample for sample in watch.samples if sample.own_bytes > MEMORY_BYTES]
    if above:
        highest = max(above, key=lambda sample: sample.own_bytes)
        yield f"{len(above)} of {len(watch.samples)} samples are above {MEMORY_BYTES}, the highest is {highest}"


def cpu_stays_under_its_limit(watch: Watch) -> Iterator[str]:
    """In no 10 seconds above it."""
    means = watch.cpu_fractions()
    if not means:
        yield "it was over before 10 s had gone by"
    elif max(means) > CPU_FRACTION:
        above = sum(mean > CPU_FRACTION for mean in means)
        yield f"{above} of {len(means)} means of 10 s are above {CPU_FRACTION:.0%} CPU, the highest is {max(means):.1%}"


def it_was_looked_at_often_enough(watch: Watch) -> Iterator[str]:
    """What is not seen can't be told."""
    if watch.gap_s(0.95) > GAP_S:
        yield f"95 % of the looks were only within {watch.gap_s(0.95):.3f} s of each other"


def each_task_ends_as_it_should(outcomes: list[Outcome]) -> Iterator[str]:
    """Honest ones complete; liars do, or are told what to declare; one that reads a large file is no hog."""
    for outcome in outcomes:
        allowed = {"completed"} if outcome.call.honest else {"completed", "MemoryLimitExceeded"}
        if outcome.ending not in allowed:
            yield f"{'honest' if outcome.call.honest else 'a liar'}: {outcome}"
        elif outcome.call.name == "reads_a_file" and outcome.attempts != 1:
            yield f"taken for a hog: {outcome}"
