"""The transport for a server behind Sentinel: each connection is made to whichever is the master then.

Private parts of `kombu.transport.redis` 5.7 used here: of `SentinelChannel` `_sentinel_manager`.
"""

from __future__ import annotations

from typing import Any

import redis
from kombu.transport import redis as kombu_redis

from agentlink.broker.transport import Channel, Transport


class SentinelConnection(redis.sentinel.SentinelManagedConnection):
    """A connection that asks where the master is each time it is made.

    redis-py 8.1 asks only when a connection leaves its pool; one that is kept would knock at the dead master for ever.
    """

    def connect(self) -> None:
        """Connect to the master, if not connected."""
        try:
            super().connect()  # type: ignore[no-untyped-call]
        except redis.sentinel.MasterNotFoundError:  # it prints each client, with all that can be set of one
            master = self.connection_pool.service_name
            raise redis.ConnectionError(f"no Sentinel that answers knows a master {master!r}") from None

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Connect if need be, and send."""
        self.connect()
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]


class SentinelChannel(Channel, kombu_redis.SentinelChannel):
    """The same for a server behind Sentinel: each connection is made to whichever is the master then."""

    from_transport_options = tuple(
        dict.fromkeys((*Channel.from_transport_options, *kombu_redis.SentinelChannel.from_transport_options))
    )

    connection_class = SentinelConnection
    _sentinel_manager: Any

    @property
    def _address(self) -> str:
        """All of the Sentinels: kombu turns from one to the next, and the broker they know stays the same."""
        return "|".join([*(self.connection.client.alt or [super()._address]), self.master_name])

    def _get_lasting_pool(self) -> redis.ConnectionPool:
        # kombu closes the connections to the Sentinels of the pool it made last, when it closes the channel.
        channels_own = self._sentinel_manager
        try:
            return super()._get_lasting_pool()
        finally:
            self._sentinel_manager = channels_own


class SentinelTransport(Transport):
    """The same for a server behind Sentinel."""

    Channel = SentinelChannel
    default_port = kombu_redis.SentinelTransport.default_port
