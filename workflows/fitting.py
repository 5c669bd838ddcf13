"""What becomes of a canvas in a run whose steps can't be called."""

from __future__ import annotations

from celery import Celery
from celery.canvas import Signature

from tasks import fitting
from tasks.errors import ArgumentsUnfit
from workflows.errors import CanvasUnusable


def check_steps(canvas: Signature, app: Celery) -> None:
    """Refuse a canvas with a step whose task can't be called as it would be; see `tasks.fitting`.

    Raises:
        CanvasUnusable: which step, what is wrong with its arguments, and what would fit.
    """
    try:
        fitting.check_steps(canvas, app)
    except ArgumentsUnfit as error:
        raise CanvasUnusable(str(error)) from None
