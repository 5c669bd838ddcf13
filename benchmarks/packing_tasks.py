"""The tasks of `benchmarks.packing_load` on AgentLink. None of them declares anything."""

from __future__ import annotations

from benchmarks.packing_load import KINDS, holder
from tasks import task

TASKS = [task(name=f"packing.{kind[0]}")(holder(*kind)) for kind in KINDS]
