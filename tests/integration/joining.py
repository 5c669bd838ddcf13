"""What a test adds to a worker: the broker is killed as a process is about to read the results of a chord's members."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from redis.client import Pipeline

NOW = Path(os.environ.get("TEST_JOIN_NOW", "/nowhere"))

_execute = Pipeline.execute


def _kill_broker_first(self: Any, *args: Any, **kwargs: Any) -> Any:
    reads_members = [command[0][0] for command in self.command_stack] in (["ZRANGE"], ["LRANGE"])
    if reads_members and NOW.exists():
        os.kill(int(NOW.read_text()), signal.SIGKILL)
        NOW.unlink()
    return _execute(self, *args, **kwargs)


Pipeline.execute = _kill_broker_first  # type: ignore[method-assign]
