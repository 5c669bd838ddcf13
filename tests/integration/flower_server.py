"""Flower as `celery -A tasks flower` starts it, and a client that asks as a program or as a page would."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.integration.system import REPOSITORY, System
from tests.waiting import wait_until

_BANNER = re.compile(r"Visit me at (http://\S+)")


@dataclass
class Answer:
    """What Flower has answered."""

    status: int
    headers: http.client.HTTPMessage
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class FlowerServer:
    """A Flower that answers, and headers that are sent with each request."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, path: str, method: str = "GET", facts: Any = None, **headers: str) -> Answer:
        """One request; in names of headers `_` stands for `-`."""
        where = urlsplit(self.url)
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=10)
        sent = self.headers | {name.replace("_", "-"): value for name, value in headers.items()}
        with contextlib.closing(connection):
            connection.request(
                method, where.path.rstrip("/") + path, None if facts is None else json.dumps(facts), sent
            )
            response = connection.getresponse()
            # A stream does not end by itself.
            stream = response.headers.get_content_type() == "text/event-stream"
            return Answer(response.status, response.headers, "" if stream else response.read().decode())

    def events(self, path: str) -> Iterator[tuple[str, Any]]:
        """What a stream tells, from its beginning: names of events, and their data."""
        where = urlsplit(self.url)
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", where.path.rstrip("/") + path, headers=self.headers)
            response = connection.getresponse()
            assert response.status == 200, response.read()
            name = ""
            for line in response:
                word, _, value = line.decode().rstrip("\n").partition(": ")
                if word == "event":
                    name = value
                elif word == "data":
                    yield name, json.loads(value)

    def token(self) -> dict[str, str]:
        """The headers with which a page changes something."""
        cookie = self.ask("/workflows").headers["Set-Cookie"].partition(";")[0]
        return {"Cookie": cookie, "X_XSRFToken": cookie.partition("=")[2].strip('"'), "Sec_Fetch_Site": "same-origin"}


def credentials(words: str) -> dict[str, str]:
    """The headers of who gives a user's name and password."""
    return {"Authorization": f"Basic {base64.b64encode(words.encode()).decode()}"}


@contextlib.contextmanager
def flower_server(system: System, *options: str, **settings: str) -> Iterator[FlowerServer]:
    """Flower, until the end of the block."""
    log_path = system.folder / "flower.log"
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "celery",
        "-A",
        "tasks",
        "flower",
        "--address=127.0.0.1",
        "--port=0",
    ]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*command, *options], cwd=REPOSITORY, env=system.environment(**settings), stdout=log, stderr=log,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        found = wait_until(
            lambda: process.poll() is not None or _BANNER.search(log_path.read_text(errors="replace")),
            what="Flower's address",
            timeout_s=30,
        )
        assert isinstance(found, re.Match), log_path.read_text(errors="replace")
        yield FlowerServer(found[1])
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
