"""Keeps a worker within the machine's memory: above the soft limit it takes no new tasks until there is room again.

`sensors` read, `policy` decides (pure), `valve` holds the decision, `guard` is the loop, `celery_step` is the way into
a Celery worker.
"""

from resource_guard.errors import GuardError, SensorError
from resource_guard.guard import Guard
from resource_guard.limits import Limits, Marks
from resource_guard.observation import Change, Decision, Level, Observation, ProcessUse, Reading, Resource
from resource_guard.policy import State, decide
from resource_guard.ranking import Candidate, rank_for_eviction
from resource_guard.sensors import Sensors
from resource_guard.valve import Valve

__all__ = [
    "Candidate",
    "Change",
    "Decision",
    "Guard",
    "GuardError",
    "Level",
    "Limits",
    "Marks",
    "Observation",
    "ProcessUse",
    "Reading",
    "Resource",
    "SensorError",
    "Sensors",
    "State",
    "Valve",
    "decide",
    "rank_for_eviction",
]
