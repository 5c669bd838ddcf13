"""What this process tells systemd of itself: sd_notify(3), a datagram to the socket that $NOTIFY_SOCKET names."""

from __future__ import annotations

import contextlib
import os
import socket


class Notifier:
    """Tells systemd; where it did not start this process, or is not there, nothing happens."""

    def __init__(self, address: str = "") -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address

    @classmethod
    def of_this_process(cls) -> Notifier:
        """The one systemd has asked for. What this process starts is not to speak in its name: the variable goes."""
        return cls(os.environ.pop("NOTIFY_SOCKET", ""))

    def ready(self, status: str) -> None:
        """Everything works."""
        self._tell("READY=1", f"STATUS={status}")

    def stopping(self, status: str) -> None:
        """The end has begun."""
        self._tell("STOPPING=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """What `systemctl status` shows."""
        self._tell(f"STATUS={status}")

    def alive(self) -> None:
        """Feed the watchdog, if the unit has one."""
        self._tell("WATCHDOG=1")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to_systemd:
            to_systemd.setblocking(False)  # a busy systemd is not to hold up a worker
            to_systemd.sendto("\n".join(lines).encode(), self._address)
