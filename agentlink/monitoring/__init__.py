"""What is known of how everything goes: events as they happen, and readings over the last month.

Workers write both (see `watching`); whoever shows them reads them by `events.read` and `history.read`.
"""

from agentlink.monitoring import worker_step
from tasks.app import app

worker_step.install(app)
