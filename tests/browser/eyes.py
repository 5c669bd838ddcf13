"""What sees the pages: a headless chromium that notes what a user would find wrong in any of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

__all__ = ["Eyes", "browser", "expect"]

_REFUSED = "status of 409 (Conflict)"


@dataclass
class Eyes:
    """A page, and what was wrong with it so far."""

    browser: Browser
    url: str
    page: Page
    complaints: list[str] = field(default_factory=list)

    def look(self, path: str) -> Page:
        """Go to a page."""
        self.page.goto(self.url + path, wait_until="domcontentloaded")
        return self.page

    def other(self, **options: Any) -> Page:
        """The same eyes on another screen."""
        page = self.browser.new_context(**options).new_page()
        _watch(page, self)
        return page


@contextlib.contextmanager
def browser(program: Path, url: str) -> Iterator[Eyes]:
    """Eyes on a dark screen of usual size."""
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=[*as_root, "--disable-dev-shm-usage"])
        page = chromium.new_context(color_scheme="dark", viewport={"width": 1280, "height": 800}).new_page()
        eyes = Eyes(chromium, url, page)
        _watch(page, eyes)
        page.on("dialog", lambda dialog: dialog.accept())
        yield eyes
        chromium.close()


def _watch(page: Page, eyes: Eyes) -> None:
    # A change that is refused with a sentence is no mistake, but chromium's console tells of its status.
    page.on("console", lambda said: None if _REFUSED in said.text else eyes.complaints.append(f"console: {said.text}"))
    page.on("pageerror", lambda error: eyes.complaints.append(f"error: {error}"))
    page.on(
        "request",
        lambda asked: (
            None
            if asked.url.startswith((eyes.url, "data:"))
            else eyes.complaints.append(f"asked elsewhere: {asked.url}")
        ),
    )
