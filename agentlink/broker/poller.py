"""When channels take, and which sockets wake them: kombu's poller, for channels that take through a lease.

Private parts of kombu 5.7's `MultiChannelPoller` used here and held by a contract test: `_channels`, `_fd_to_chan`,
`_chan_to_sock`, `_register_BRPOP`, `_register_LISTEN`, `_update_brpop_polling`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from queue import Empty
from typing import Any

from kombu.transport import redis as kombu_redis

#: A message without news of it (from a client with kombu's own transport) is found after this time at the latest.
LOOK_AGAIN_S = 1.0


class Poller(kombu_redis.MultiChannelPoller):
    """kombu's poller, with channels that take through a lease."""

    #: The event loop's, once there is one.
    call_later: Callable[..., Any] | None = None
    #: Written to, it wakes that loop.
    waker: socket.socket | None = None

    def close(self) -> None:
        """Close what was opened for the loop too."""
        super().close()
        if self.waker is not None:
            self.waker.close()
            self.waker = None

    def on_poll_start(self) -> None:
        """Take what may be taken, before the loop goes to sleep."""
        self._update_brpop_polling()
        for channel in self._channels:
            if channel.leased:
                self._register_LISTEN(channel)
                channel.take()
                continue
            if channel.active_queues and channel.qos.can_consume():
                self._register_BRPOP(channel)
            if channel.active_fanout_queues:
                self._register_LISTEN(channel)

    def sockets(self) -> list[tuple[int, Any]]:
        """Every socket to be watched, by its number."""
        return [(sock.fileno(), sock) for sock in self._chan_to_sock.values() if sock.fileno() in self.fds]

    def on_readable(self, fileno: int) -> None:
        """Read what has come; news is read also while nothing may be taken, or the loop would not sleep for it."""
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if kind == "LISTEN":
            channel.handlers[kind]()
        else:
            super().on_readable(fileno)

    def get(self, callback: Any, timeout: float | None = None) -> None:
        """For consumers without an event loop: deliver something, or raise `Empty` after `timeout`."""
        leased = [channel for channel in self._channels if channel.leased]
        delivered = sum(channel.delivered for channel in leased)
        wait_s = min([LOOK_AGAIN_S, *(channel.sleep_s for channel in leased)]) if leased else timeout
        try:
            super().get(callback, wait_s if timeout is None else min(timeout, wait_s or timeout))
        except Empty:
            if sum(channel.delivered for channel in leased) == delivered:
                raise

    def on_poll_init(self, poller: Any) -> None:
        """There is nothing to restore by the clock."""
        self.poller = poller

    def maybe_restore_messages(self) -> None:
        """There is nothing to restore by the clock."""
