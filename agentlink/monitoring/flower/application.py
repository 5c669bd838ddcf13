"""Flower with our pages: its application and template loader, each extended by what is ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from flower.app import Flower, rewrite_handler
from tornado.template import Loader, Template
from tornado.web import url

from agentlink.monitoring import health_http, metrics
from agentlink.monitoring.flower.routes import NAVIGATION, ROUTES

_TEMPLATES = Path(__file__).parent / "templates"
# The first list of links in Flower's own navigation, up to its end.
_LINKS = re.compile(r'(<ul class="app-nav navbar-nav">.*?)(\s*</ul>)', re.DOTALL)
_LINK = """
        <li class="nav-item">
          <a class="nav-link{{% if active_tab == '{name}' %}} active{{% end %}}" href="{{{{ reverse_url('{name}') }}}}"
            {{% if active_tab == '{name}' %}}aria-current="page"{{% end %}}>{title}</a>
        </li>"""


class PagesFlower(Flower):
    """Flower's application, our routes before its own, our metrics with its own."""

    def __init__(self, *args: Any, options: Any = None, **settings: Any) -> None:
        settings["template_loader"] = PagesLoader(settings["template_path"])
        super().__init__(*args, options=options, **settings)
        prefix = self.options.url_prefix
        routes = [*ROUTES, *(url(*route) for route in health_http.ROUTES)]
        self.add_handlers(".*", [rewrite_handler(route, prefix) if prefix else route for route in routes])
        metrics.add_to_flower()


class PagesLoader(Loader):
    """Finds our templates beside Flower's, and adds our pages to its navigation."""

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:
        """Tornado's; all names are relative to the root."""
        return name

    def _create_template(self, name: str) -> Template:
        ours = _TEMPLATES / name
        text = (ours if ours.is_file() else Path(self.root, name)).read_text(encoding="utf-8")
        if name == "navbar.html":
            text = with_our_pages(text)
        return Template(text, name=name, loader=self)


def with_our_pages(navigation: str) -> str:
    """Flower's navigation with a link to each of our pages.

    Raises:
        ValueError: it is not as Flower 2.2 has it.
    """
    links = "".join(_LINK.format(name=name, title=title) for name, title in NAVIGATION)
    text, found = _LINKS.subn(lambda match: match[1] + links + match[2], navigation)
    if found != 1:
        raise ValueError(f"want one list of links in Flower's navigation, found {found}")
    return text
