"""Keeps a worker within the machine's memory: above the soft limit it takes no new tasks until there is room again.

`sensors` read, `policy` decides (pure), `valve` holds the decision, `guard` is the loop, `celery_step` is the way into
a Celery worker.
"""

from resource_guard.errors import GuardError, SensorError
from resource_guard.guard import Guard
from resource_guard.limits import Limits
from resource_guard.observation import Action, Decision, Observation, Pressure, State
from resource_guard.policy import decide
from resource_guard.sensors import MemorySensor, memory_sensor
from resource_guard.valve import Valve

__all__ = [
    "Action",
    "Decision",
    "Guard",
    "GuardError",
    "Limits",
    "MemorySensor",
    "Observation",
    "Pressure",
    "SensorError",
    "State",
    "Valve",
    "decide",
    "memory_sensor",
]
