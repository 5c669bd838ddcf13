"""What is known of how everything goes: events as they happen, and readings over the last month.

Workers write both (see `watching`); whoever shows them reads them by `events.read` and `history.read`.
"""

import click

from agentlink.monitoring import metrics_server, worker_step
from tasks.app import app

worker_step.install(app)
metrics_server.install(app)

# Flower imports the app's modules as it starts; some apps are imported with theirs as `celery` looks for its command.
_command = click.get_current_context(silent=True)
if _command is not None and "flower" in (_command.info_name, _command.invoked_subcommand):
    from agentlink.monitoring import metrics

    metrics.add_to_flower()
