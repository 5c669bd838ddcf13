"""What tells workers what to do: Celery's remote control, with a memory for what was revoked."""

from __future__ import annotations

from typing import Any

from celery.app.control import Control as CeleryControl
from kombu.utils.functional import maybe_list

from agentlink.broker import revoked
from agentlink.settings import load


class Control(CeleryControl):
    """Celery's remote control; a revoked task stays so when workers end, or when none was up."""

    def revoke(self, task_id: Any, destination: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Revoke a task, or a list of them: whichever worker takes it from now on drops it.

        Recorded in the broker for as long as results are kept, then broadcast as Celery does. With a `destination` it
        is only told to those workers, and they forget it when they end.

        Raises:
            BrokerUnavailable: nothing was recorded nor will be, and nobody was told.
        """
        task_ids = list(maybe_list(task_id) or [])
        if task_ids and not destination:
            with self.app.producer_or_acquire() as producer:
                producer.channel.publish([], revoked.record_commands(task_ids, load().keep_results_s))
        return super().revoke(task_id, destination, *args, **kwargs)
