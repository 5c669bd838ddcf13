"""Health over HTTP: what is answered, to whom, and how soon."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import tornado.web
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port

from agentlink.monitoring import health_http
from agentlink.monitoring.health import Verdict
from agentlink.monitoring.health_http import ROUTES, Asked, Health
from agentlink.monitoring.health_ready import server_lives


class Application(tornado.web.Application):
    """What Flower's handlers need of its own."""

    options = SimpleNamespace(basic_auth=None, auth=None)


def _asked(look: Callable[[], Verdict], times: int = 1, **headers: str) -> list[HTTPResponse]:
    """What a server answers that is asked so often, at once."""

    async def ask() -> list[HTTPResponse]:
        listening, port = bind_unused_port()
        server = HTTPServer(Application([("/readyz", Health, {"asked": Asked(look)})]))
        server.add_socket(listening)
        client = AsyncHTTPClient(force_instance=True)
        url = f"http://127.0.0.1:{port}/readyz"
        try:
            asked = [client.fetch(url, raise_error=False, headers=headers) for _ in range(times)]
            return await asyncio.gather(*asked)
        finally:
            client.close()
            server.stop()

    return asyncio.run(ask())


def _facts(response: HTTPResponse) -> Any:
    return json.loads(response.body)


def test_what_is_well_answers_200_and_what_is_not_503() -> None:
    (well,) = _asked(lambda: Verdict(True, ["workers connected: 2"]))
    assert (well.code, _facts(well)) == (200, {"ok": True, "reasons": ["workers connected: 2"]})
    (ill,) = _asked(lambda: Verdict(False, ["no worker"]))
    assert (ill.code, _facts(ill)) == (503, {"ok": False, "reasons": ["no worker"]})


def test_a_broker_that_hangs_is_answered_in_time_and_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_http, "PATIENCE_S", 0.1)
    released, asked = threading.Event(), []

    def hang() -> Verdict:
        asked.append(1)
        released.wait(20)
        return Verdict(True, [])

    timer = threading.Timer(1, released.set)  # asyncio waits for its threads at the end
    timer.start()
    responses = _asked(hang, times=5)
    timer.join()
    assert [response.code for response in responses] == [503] * 5
    assert _facts(responses[0])["reasons"] == ["the broker does not answer within 0.1 s"]
    assert len(asked) == 1


def test_nobody_is_answered_whom_flower_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Application, "options", SimpleNamespace(basic_auth=["anna:hush"], auth=None))
    (refused,) = _asked(server_lives)
    assert (refused.code, b"answers" in refused.body) == (401, False)
    (known,) = _asked(server_lives, Authorization=f"Basic {base64.b64encode(b'anna:hush').decode()}")
    assert known.code == 200


def test_both_questions_have_a_route() -> None:
    assert [path for path, *_ in ROUTES] == ["/livez", "/readyz"]
