"""Prometheus's own checks, where they are installed (Debian's package `prometheus`)."""

from __future__ import annotations

import shutil
import subprocess

import pytest

needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool of Debian's prometheus")


def promtool(*arguments: str, text: bytes = b"") -> None:
    """Run it; what it finds wrong is the test's failure."""
    ran = subprocess.run(["promtool", *arguments], input=text, capture_output=True, timeout=60, check=False)
    assert ran.returncode == 0, (ran.stdout + ran.stderr).decode()
