"""Where commands print pages for people."""

from __future__ import annotations

import sys

from rich.console import Console


def page_console() -> Console:
    """Standard output, as wide as the terminal."""
    # Piped into a file or a pager there is no width to fit into, and an id is to be copied whole.
    return Console(width=None if sys.stdout.isatty() else 200)
