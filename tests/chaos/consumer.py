"""A plain kombu consumer on our transport, made by a parent that has imported everything: cheap to kill by the hundred.

    python -m tests.chaos.consumer URL QUEUE LEDGER LEASE_S

Each line on its standard input makes one more; its pid is printed. A message is a number; it is written to the ledger
and then acknowledged.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from kombu import Connection, Consumer, Queue

from agentlink.broker.transport import register

PREFETCH = 8


def main() -> None:
    url, queue, path, lease_s = sys.argv[1:]
    register()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever kills them does not have to collect them
    for _ in sys.stdin:
        pid = os.fork()
        if not pid:
            consume(url, queue, path, float(lease_s))
        print(pid, flush=True)


def consume(url: str, queue: str, path: str, lease_s: float) -> None:
    """For ever."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def enter(body: int, message: Any) -> None:
        os.write(fd, f"{body}\n".encode())
        message.ack()

    options = {"lease_s": lease_s, "priority_steps": list(range(10))}
    with Connection(url, transport_options=options) as connection:
        channel = connection.channel()
        with Consumer(channel, [Queue(queue)], callbacks=[enter], prefetch_count=PREFETCH):
            while True:
                try:
                    connection.drain_events(timeout=1)
                except TimeoutError:
                    continue


if __name__ == "__main__":
    main()
