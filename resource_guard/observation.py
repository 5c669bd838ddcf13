"""What the guard sees, and what it makes of it: plain values that pass between sensors, policy and guard."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One reading of everything the policy looks at; `at` is monotonic, in seconds."""

    at: float
    # Memory of the worker's main process and all its descendants.
    tree_bytes: int
    # What the machine can still give without swapping.
    available_bytes: int


class Pressure(Enum):
    """How tight memory is: `SOFT` means no new work, `HARD` that the worker is over its whole limit."""

    OK = "ok"
    SOFT = "soft"
    HARD = "hard"


class Action(Enum):
    """What is to be done about it now."""

    NONE = "none"
    PAUSE = "pause"
    RESUME = "resume"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do, and why in one sentence with reading and limit.

    While a worker stays paused, `reason` says what holds it; while there is nothing to say it is empty.
    """

    action: Action
    pressure: Pressure
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class State:
    """What the policy remembers from one observation to the next: since when it has been paused, if it is."""

    paused_at: float | None = None
