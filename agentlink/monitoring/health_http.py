"""`/livez` and `/readyz`: 200 or 503, with reasons as JSON. Routes for Flower's server, behind its authentication."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from agentlink.monitoring.flower.base import Guarded
from agentlink.monitoring.health import Verdict
from agentlink.monitoring.health_ready import server_lives, system_ready

PATIENCE_S = 2.0


class Asked:
    """Asks in a thread, one at a time: a broker that hangs is not to hold a thread for every probe that comes."""

    def __init__(self, look: Callable[[], Verdict]) -> None:
        self._look = look
        self._going_on: asyncio.Future[Verdict] | None = None

    async def verdict(self) -> Verdict:
        """What the look finds, in time or not."""
        if self._going_on is None or self._going_on.done():
            self._going_on = asyncio.get_running_loop().run_in_executor(None, self._look)
        try:
            return await asyncio.wait_for(asyncio.shield(self._going_on), PATIENCE_S)
        except TimeoutError:
            return Verdict(False, [f"the broker does not answer within {PATIENCE_S:g} s"])


class Health(Guarded):
    """Answers one of the two questions."""

    def initialize(self, asked: Asked) -> None:
        """Which one."""
        self._asked = asked

    async def get(self) -> None:
        """The verdict."""
        verdict = await self._asked.verdict()
        self.set_status(200 if verdict.ok else 503)
        self.set_header("Cache-Control", "no-store")
        self.finish({"ok": verdict.ok, "reasons": verdict.reasons})


#: To be mounted in Flower's application.
ROUTES: list[tuple[str, type[Health], dict[str, Any]]] = [
    ("/livez", Health, {"asked": Asked(server_lives)}),
    ("/readyz", Health, {"asked": Asked(system_ready)}),
]
