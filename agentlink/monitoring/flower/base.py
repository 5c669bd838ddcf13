"""What all our routes have in common: who may see them, who may change something, and what a browser may load for them.

Everything here is behind Flower's authentication. What changes something takes POST alone, and either the token that
Flower's pages have in a cookie or the credentials of a client that is no browser.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

import tornado.web
from flower.views import BaseHandler
from kombu.exceptions import OperationalError
from kombu.utils.json import dumps
from redis import Redis, RedisError
from tornado.escape import json_decode
from tornado.web import HTTPError, RequestHandler, StaticFileHandler

from agentlink.errors import AgentLinkError
from tasks import app

T = TypeVar("T")

#: What a broker that is away raises.
BROKER_AWAY = (RedisError, OperationalError, OSError)

# Scripts, styles and data come from this server alone: what a task's result might bring along is not run.
_POLICY = "; ".join((
    "default-src 'self'", "img-src 'self' data:", "object-src 'none'",
    "base-uri 'none'", "form-action 'self'", "frame-ancestors 'none'",
))  # fmt: skip
_STATIC = Path(__file__).parent / "static"


class Guarded(BaseHandler):
    """A route that answers nobody whom Flower does not know."""

    def set_default_headers(self) -> None:
        """In place of Flower's, which may let pages of other sites read its API."""
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Content-Security-Policy", _POLICY)
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cache-Control", "no-cache")

    def options(self, *_: Any, **__: Any) -> None:
        """In place of Flower's: there is nothing that another site may ask."""
        raise HTTPError(405)

    @tornado.web.authenticated
    def prepare(self) -> None:
        """Tornado's hook before each request."""

    @property
    def client(self) -> Redis:
        """The broker's."""
        client: Redis = app.backend.client
        return client

    def word(self, name: str, default: str = "") -> str:
        """An argument of the request as it was given: Flower's own `get_argument` escapes it for HTML."""
        word: str = self.get_argument(name, default, escape=False) or default
        return word

    async def apart(self, look: Callable[..., T], *args: Any) -> T:
        """What a function returns that asks the broker: in a thread, for Flower goes on meanwhile."""
        found: T = await self.application.io_loop.run_in_executor(self.application.executor, look, *args)
        return found

    def answer(self, facts: Any) -> None:
        """JSON."""
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(dumps(facts))


class Page(Guarded):
    """A page: its frame. What it shows comes over its stream."""

    def initialize(self, template: str, title: str, tab: str) -> None:
        """Which page it is."""
        self.page = {"template": template, "title": title, "tab": tab}

    def get(self, *path: str) -> None:
        """The page."""
        page = self.page
        facts = {"title": page["title"], "tab": page["tab"], "read_only": self.application.options.read_only}
        self.render(page["template"], path=path, **facts)


class Ours(Guarded):
    """A route that speaks JSON; what goes wrong is a sentence."""

    def write_error(self, status_code: int, **facts: Any) -> None:
        """In place of Flower's page."""
        if status_code == 401:
            self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        error = facts.get("exc_info", (None, None))[1]
        said = error.get_message() if isinstance(error, HTTPError) else None
        self.answer({"error": said or f"{status_code} {self._reason}"})

    async def told(self, look: Callable[..., T], *args: Any) -> T:
        """What `look` returns.

        Raises:
            HTTPError: it refuses, or the broker is away; with the reason.
        """
        try:
            return await self.apart(look, *args)
        except AgentLinkError as refused:
            raise HTTPError(409, "%s", refused) from refused
        except BROKER_AWAY as error:
            raise HTTPError(503, "the broker does not answer: %s", error) from error


class Change(Ours):
    """A route that changes something: POST with a JSON object."""

    def check_xsrf_cookie(self) -> None:
        """In place of Flower's, which asks for no token where no authentication is set, or only a password."""
        if not self.current_user:  # or 401: whoever may do nothing is told no more
            raise HTTPError(403, "log in first")
        headers, secured = self.request.headers, self.application.options
        site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
        if (site and site != "same-origin") or (origin and urlparse(origin).netloc != self.request.host):
            raise HTTPError(403, "it was asked by another site")
        if secured.basic_auth or secured.auth:
            if headers.get("Authorization") and not site and not origin:
                return  # a program: browsers say from where they ask
        elif not _is_local(self.request.host_name):
            # Else a site could take this server's address under its own name.
            raise HTTPError(403, "without authentication, Flower is changed at 127.0.0.1 or another number alone")
        RequestHandler.check_xsrf_cookie(self)

    @tornado.web.authenticated
    def prepare(self) -> None:
        """Tornado's hook before each request."""
        if self.application.options.read_only and self.request.method == "POST":
            raise HTTPError(403, "Flower is in read-only mode")

    def asked(self) -> dict[str, Any]:
        """The request's JSON object.

        Raises:
            HTTPError: it is none.
        """
        try:
            asked = json_decode(self.request.body)
        except ValueError:
            asked = None
        if not isinstance(asked, dict):
            raise HTTPError(400, "want a JSON object")
        return asked


class Static(Guarded, StaticFileHandler):
    """Our scripts and styles, asked for anew each time: they are small, and have the version that the pages have."""

    def initialize(self) -> None:  # type: ignore[override]  # Tornado's takes where from
        """Where they are."""
        StaticFileHandler.initialize(self, str(_STATIC))

    def set_extra_headers(self, path: str) -> None:
        """After Tornado's own."""
        self.set_header("Cache-Control", "no-cache")


def _is_local(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True
