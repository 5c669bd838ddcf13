"""Server-sent events: what has changed since the last picture, at most four times a second, as long as a page looks.

A picture that takes long is made less often: a page costs this process and the broker a tenth of a core at most.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from kombu.utils.json import dumps
from tornado.iostream import StreamClosedError

from agentlink.errors import AgentLinkError
from agentlink.monitoring.flower.base import BROKER_AWAY, Ours

logger = logging.getLogger(__name__)

PICTURE_EVERY_S = 0.25
_COST_FRACTION = 0.1
# A proxy closes what is silent for long; and so a page that has gone is noticed.
_ALIVE_EVERY_S = 10.0


class Stream(Ours):
    """A page's stream; `look` is asked in a thread, one call at a time, and at most once in `every_s`."""

    every_s = PICTURE_EVERY_S

    def look(self) -> dict[str, Any]:
        """What to tell the page now, by the names of events; nothing where nothing has changed."""
        raise NotImplementedError

    async def get(self, *_: str) -> None:
        """Tell until the page is gone."""
        self.gone = asyncio.Event()
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.set_header("X-Accel-Buffering", "no")
        said_at, trouble = 0.0, None
        try:
            while not self.gone.is_set():
                began = time.monotonic()
                trouble, changes = await self._changes(trouble)
                if changes:
                    for name, facts in changes.items():
                        self.write(f"event: {name}\ndata: {dumps(facts)}\n\n")
                elif began - said_at > _ALIVE_EVERY_S:
                    self.write(": still here\n\n")
                if changes or began - said_at > _ALIVE_EVERY_S:
                    said_at = began
                    await self.flush()
                took_s = time.monotonic() - began
                await self._pause(max(self.every_s - took_s, took_s / _COST_FRACTION - took_s))
        except StreamClosedError:
            pass

    async def _changes(self, trouble: str | None) -> tuple[str | None, dict[str, Any]]:
        """What keeps the page from being current, if anything, and what to tell it."""
        try:
            changes = await self.apart(self.look)
        except (*BROKER_AWAY, AgentLinkError) as error:
            problem = str(error) if isinstance(error, AgentLinkError) else f"the broker does not answer: {error}"
            return problem, {} if problem == trouble else {"trouble": problem}
        return None, changes if trouble is None else {"trouble": None} | changes

    async def _pause(self, pause_s: float) -> None:
        try:
            await asyncio.wait_for(self.gone.wait(), max(pause_s, 0.01))
        except TimeoutError:
            return

    def on_connection_close(self) -> None:
        """Tornado's: the page is gone."""
        if hasattr(self, "gone"):
            self.gone.set()
