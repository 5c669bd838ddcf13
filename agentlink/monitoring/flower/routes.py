"""Our addresses, and the links in Flower's navigation."""

from __future__ import annotations

from tornado.web import url

from agentlink.monitoring.flower.base import Page, Static
from agentlink.monitoring.flower.letters import Letter, LettersChange, LettersStream
from agentlink.monitoring.flower.resources import ResourcesChange, ResourcesStream
from agentlink.monitoring.flower.run import RunChange, RunStream
from agentlink.monitoring.flower.runs import RunsChange, RunsStream
from agentlink.monitoring.flower.starting import Forms, Start
from agentlink.monitoring.flower.timetable import SchedulesChange, SchedulesStream
from agentlink.monitoring.health_http import ROUTES as HEALTH

#: Names of pages, and how people see them.
NAVIGATION = [
    ("workflows", "Workflows"),
    ("resources", "Resources"),
    ("letters", "Dead letters"),
    ("schedules", "Schedules"),
]


def _page(address: str, name: str, title: str, tab: str = "") -> url:
    facts = {"template": f"agentlink_{name}.html", "title": title, "tab": tab or name}
    return url(address, Page, facts, name=name)


ROUTES = [
    _page(r"/workflows", "workflows", "Workflows"),
    url(r"/workflows/stream", RunsStream),
    url(r"/workflows/forms", Forms),
    url(r"/workflows/start", Start),
    url(r"/workflows/(cancel|resume)", RunsChange),
    _page(r"/workflows/run/([^/]+)", "run", "Run", tab="workflows"),
    url(r"/workflows/run/([^/]+)/stream", RunStream),
    url(r"/workflows/run/([^/]+)/(cancel|resume|retry|signal)", RunChange),
    _page(r"/resources", "resources", "Resources"),
    url(r"/resources/stream", ResourcesStream),
    url(r"/resources/(pause|resume|limits|reset)", ResourcesChange),
    _page(r"/letters", "letters", "Dead letters"),
    url(r"/letters/stream", LettersStream),
    url(r"/letters/letter/([^/]+)", Letter),
    url(r"/letters/(again|drop)", LettersChange),
    _page(r"/schedules", "schedules", "Schedules"),
    url(r"/schedules/stream", SchedulesStream),
    url(r"/schedules/(add|pause|resume|run|remove)", SchedulesChange),
    *(url(address, handler, facts) for address, handler, facts in HEALTH),
    url(r"/static/agentlink/(.+)", Static, name="agentlink_static"),
]
