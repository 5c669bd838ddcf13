"""A broker of one's own behind TLS (`rediss://`): calls, a worker and results go through it, and through no impostor.

The embedded server's program knows no TLS, so a relay that does stands before its socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.system import System
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="the command openssl makes the certificates")


def _certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for localhost, signed by itself, and its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


class Relay:
    """Takes TLS connections on a port of its own and passes what they say to a Unix socket."""

    def __init__(self, socket_path: Path, certificate: Path, key: Path) -> None:
        self.port = 0
        self.connections = 0
        self._socket_path = socket_path
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._thread = threading.Thread(target=asyncio.run, args=[self._serve()], name="relay")

    def start(self) -> None:
        self._thread.start()
        wait_until(lambda: self.port, what="the relay's port")

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        relayed: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            relayed.add(asyncio.create_task(self._relay(reader, writer)))

        server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        await self._stopped.wait()
        server.close()
        for task in relayed:
            task.cancel()
        await asyncio.gather(*relayed, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(self._socket_path)
        ways = [asyncio.create_task(_copy(reader, inner_writer)), asyncio.create_task(_copy(inner_reader, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (inner_writer, writer):
                end.close()
                with contextlib.suppress(OSError):
                    await end.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()


@pytest.fixture
def relay(system: System, tmp_path: Path) -> Iterator[Relay]:
    relay = Relay(system.settings.socket_path, *_certificate(tmp_path, "server"))
    relay.start()
    yield relay
    for worker in system.workers:
        worker.stop()
    relay.stop()


CALLS = """
from tests.integration import sample
run = sample.sums.delay(3)
print(sample.add.delay(1, 2).get(timeout=20), run.get(timeout=20), run.progress.state.value)
"""


def test_calls_a_worker_and_results_go_through_tls(system: System, relay: Relay, tmp_path: Path) -> None:
    url = f"rediss://localhost:{relay.port}/0?ssl_cert_reqs=required&ssl_ca_certs={tmp_path}/server.pem"
    worker = system.start_worker(broker_url=url)
    connections = relay.connections
    assert connections > 0
    done = system.python(CALLS, broker_url=url)
    assert (done.stdout.split(), done.stderr) == (["3", "1006", "SUCCEEDED"], "")
    assert relay.connections > connections
    assert worker.stop() == 0


REFUSED_CALL = """
import time
from agentlink.broker.errors import BrokerUnavailable
from tests.integration import sample
begun = time.monotonic()
try:
    sample.add.delay(1, 1)
except BrokerUnavailable as error:
    print(time.monotonic() - begun, error)
"""


def test_a_server_that_can_not_prove_who_it_is_gets_no_call(system: System, relay: Relay, tmp_path: Path) -> None:
    _certificate(tmp_path, "other")
    url = f"rediss://localhost:{relay.port}/0?ssl_cert_reqs=required&ssl_ca_certs={tmp_path}/other.pem"
    took_s, _, why = system.python(REFUSED_CALL, broker_url=url).stdout.partition(" ")
    assert float(took_s) < 5
    assert "certificate verify failed" in why
    assert system.client.llen("cpu") == 0
