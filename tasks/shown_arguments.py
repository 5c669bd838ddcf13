"""A call's arguments as its message's headers have them, for logs, events and pages: cut where long, secrets masked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from inspect import Parameter
from typing import Any

from celery.app import amqp
from celery.utils.saferepr import saferepr

from agentlink.masking import is_secret, is_suspicious, masked_call


class AMQP(amqp.AMQP):
    """Celery's, whose messages show no secrets. What the task gets is as it was given."""

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self._parameters = cache(self._look_up)

    def as_task_v2(
        self, task_id: str, name: str, args: Any = None, kwargs: Any = None, *more: Any, **options: Any
    ) -> Any:
        """Celery's; what is shown of the arguments is made here unless the caller has said it."""
        if not options.keys() & {"argsrepr", "kwargsrepr"} and isinstance(kwargs or {}, Mapping):
            options["argsrepr"], options["kwargsrepr"] = self._shown(name, args or (), kwargs or {})
        return super().as_task_v2(task_id, name, args, kwargs, *more, **options)

    def _shown(self, name: str, args: Any, kwargs: Any) -> tuple[str, str]:
        args_text, kwargs_text = self._text(args), self._text(kwargs)
        parameters, has_secrets = self._parameters(name)
        if (has_secrets and args) or is_suspicious(args_text) or is_suspicious(kwargs_text):
            shown_args, shown_kwargs = masked_call(parameters, args, kwargs)
            args_text, kwargs_text = self._text(tuple(shown_args)), self._text(shown_kwargs)
        return args_text, kwargs_text

    def _text(self, value: Any) -> str:
        text: str = saferepr(value, self.argsrepr_maxsize, maxlevels=self.app.conf.task_repr_maxlevels)
        return text

    def _look_up(self, name: str) -> tuple[Sequence[Parameter], bool]:
        """A task's parameters, and whether one of them is a secret by its name; none of a task not known here."""
        task = self.app.tasks.get(name)
        parameters = [*task.parameters.parameters.values()] if task is not None and hasattr(task, "parameters") else []
        return parameters, any(is_secret(parameter.name) for parameter in parameters)
