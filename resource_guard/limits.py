"""The limits that the guard holds, with the relations between them checked once."""

from __future__ import annotations

from dataclasses import dataclass

# Resuming needs this much more available memory than pausing leaves: the same gap that resume keeps below soft.
COMFORT_FACTOR = 1.1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much memory a worker and all it runs may take, and how much the machine must keep.

    Raises:
        ValueError: the numbers contradict each other.
    """

    # For the worker's process tree as a whole.
    memory_bytes: int
    # Shares of it: no new work above the first, new work again below the second.
    soft_fraction: float = 0.85
    resume_fraction: float = 0.75
    # What the machine must keep available, whoever uses the rest.
    free_bytes: int = 0
    # Least time paused.
    rest_s: float = 1.0

    def __post_init__(self) -> None:
        if self.memory_bytes <= 0:
            raise ValueError(f"memory_bytes must be above 0, got {self.memory_bytes}")
        if not 0 < self.resume_fraction < self.soft_fraction <= 1:
            raise ValueError(
                "fractions must be 0 < resume_fraction < soft_fraction <= 1, "
                f"got resume_fraction {self.resume_fraction} and soft_fraction {self.soft_fraction}"
            )
        if self.free_bytes < 0:
            raise ValueError(f"free_bytes must not be negative, got {self.free_bytes}")
        if self.rest_s < 0:
            raise ValueError(f"rest_s must not be negative, got {self.rest_s}")

    @property
    def soft_bytes(self) -> int:
        """From here on no new work starts."""
        return int(self.memory_bytes * self.soft_fraction)

    @property
    def resume_bytes(self) -> int:
        """Below this a paused worker may take work again."""
        return int(self.memory_bytes * self.resume_fraction)

    @property
    def comfortable_bytes(self) -> int:
        """A paused worker takes work again only when the machine has this much available."""
        return int(self.free_bytes * COMFORT_FACTOR)
