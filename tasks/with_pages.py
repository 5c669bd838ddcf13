"""Flower as `celery -A … flower` starts it for this app: with the pages of `agentlink.monitoring.flower`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click


def install() -> None:
    """Called as the app is loaded. Where that is done for any other command, nothing of Flower is imported."""
    context = click.get_current_context(silent=True)
    if context is None or context.invoked_subcommand != "flower":
        return
    import flower.command

    # Flower's command has no other place that says which application it starts.
    flower.command.Flower = _flower


def _flower(*args: Any, **settings: Any) -> Any:
    # The module's name is text, as in Celery's `imports`: what runs tasks does not need what shows them.
    return import_module("agentlink.monitoring.flower.application").PagesFlower(*args, **settings)
