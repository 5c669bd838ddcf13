"""What recorders say is done as the script that stores a result does it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import fakeredis

from agentlink.broker.results import ASK


def record(client: fakeredis.FakeRedis, commands: Iterable[Any]) -> None:
    """Run commands in turn; what is asked first may refuse the rest."""
    for name, *arguments in commands:
        if name != ASK:
            client.execute_command(name, *arguments)
        elif client.eval(*arguments):
            return
