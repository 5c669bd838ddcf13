"""Which tasks may be handed to a pool process that still runs another, so that it never waits for the next.

Only short ones, behind short ones, and for a moment: a follower says by when it is to be begun. A process that comes to
it later does not run it but answers `NotBegun`, so that from then on it can be started elsewhere.
"""

from __future__ import annotations

from resource_guard.profiles import Profile

#: A task is short if nine of ten runs took no longer, in seconds.
SHORT_S = 0.01
#: And it was seen so many times.
SEEN_RUNS = 20
#: How long a follower is left where it is, in seconds: what was taken for short may not be.
BEGIN_WITHIN_S = 0.1
#: The message header by which a process knows: the monotonic clock's time, the same for all processes of a machine.
BEGIN_BY_HEADER = "agentlink_begin_by"


class NotBegun:
    """A process's answer for a follower that it came to too late."""


def is_short(known: Profile | None) -> bool:
    """Whether a task of which so much is known is expected to take no time."""
    return known is not None and known.runs >= SEEN_RUNS and known.mostly_s <= SHORT_S
