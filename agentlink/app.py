"""The app as the worker and Flower of `agentlink up` load it: `celery -A agentlink.app worker`.

A module of the user's that can't be imported is one line here, no traceback; and the worker says when it takes tasks.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from celery import signals

from agentlink import up
from agentlink.modules import ModuleBroken, import_all
from agentlink.settings import load
from tasks import app

__all__ = ["app"]

try:
    import_all(load())
except ModuleBroken as error:
    # Once is enough: Flower, which can't start either, leaves it to the worker.
    sys.exit(1 if "flower" in sys.argv else f"agentlink: {error}")


@signals.worker_ready.connect
def _say_ready(**_: Any) -> None:
    up.say_worker_ready(load(), os.getpid())
