"""`@workflow`: a function that returns a canvas becomes a task that starts a run."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import wraps
from typing import Any, overload

from celery import Task
from celery.canvas import Signature
from kombu.utils.uuid import uuid

from agentlink.broker.results import ResultBackend
from agentlink.broker.transport import ALSO
from tasks.app import app
from tasks.base import BaseTask
from workflows import store
from workflows.errors import CallRefused
from workflows.plan import plan
from workflows.run import WorkflowRun

Prepare = Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]
Show = Callable[[Any], str]

_ARGUMENT_MAX_CHARS = 200


class WorkflowTask(BaseTask):
    """The task behind a workflow: calling it records a run and queues its start, all or nothing."""

    abstract = True
    #: Tells the run store that this task is no step: it builds the run's canvas.
    builds_canvas = True
    #: Checks and completes a call's arguments where the call is made.
    prepare: Prepare | None = None

    def show(self, result: Any) -> str:
        """A result as Markdown for people; JSON unless the workflow says otherwise."""
        return f"```json\n{json.dumps(result, indent=2, ensure_ascii=False)}\n```"

    def delay(self, *args: Any, **kwargs: Any) -> WorkflowRun:
        """Start a run and return its handle at once, however large the workflow.

        Raises:
            CallRefused: the arguments make no sense.
            BrokerUnavailable: nothing was accepted, and nothing of this call will run later.
        """
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: tuple[Any, ...] | list[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        task_id: str | None = None,
        **options: Any,
    ) -> WorkflowRun:
        """Start a run with Celery's call options; see `delay`."""
        args, kwargs = tuple(args or ()), dict(kwargs or {})
        self._check_arguments(args, kwargs)
        if self.prepare is not None:
            args, kwargs = self.prepare(*args, **kwargs)
        run_id = task_id or uuid()
        options[ALSO] = store.creation_commands(run_id, self.name, _show(args, kwargs), options.get("root_id"))
        run: WorkflowRun = super().apply_async(args, kwargs, task_id=run_id, **options)
        return run

    def AsyncResult(self, task_id: str, **kwargs: Any) -> WorkflowRun:  # noqa: N802 - Celery's name for it
        """The handle of one of this workflow's runs."""
        return WorkflowRun(task_id, app=self._get_app(), **kwargs)

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            inspect.signature(self.build).bind(*args, **kwargs)
        except TypeError as error:
            raise CallRefused(self.__name__, f"{error}; it takes {inspect.signature(self.build)}") from None

    def build(self, *args: Any, **kwargs: Any) -> Signature:
        """The workflow function itself, callable without a broker."""
        raise NotImplementedError


@overload
def workflow(build: Callable[..., Any], /) -> WorkflowTask: ...
@overload
def workflow(
    *, prepare: Prepare | None = None, show: Show | None = None, name: str | None = None, **options: Any
) -> Callable[[Callable[..., Any]], WorkflowTask]: ...
def workflow(
    build: Callable[..., Any] | None = None,
    /,
    *,
    prepare: Prepare | None = None,
    show: Show | None = None,
    name: str | None = None,
    **options: Any,
) -> WorkflowTask | Callable[[Callable[..., Any]], WorkflowTask]:
    """Make a function that returns a canvas a workflow: `f.delay(...)` starts a run of it.

    The function runs in a worker. It must build the same canvas each time it gets the same arguments. Should it return
    anything but a canvas, that is the run's result. `prepare(*args, **kwargs) -> (args, kwargs)` runs in the caller's
    process first: it may refuse the call, or turn what only makes sense there (a relative path) into what makes sense
    anywhere. `show(result) -> Markdown` is how a person sees the result. The other options are Celery's.
    """

    def decorate(function: Callable[..., Any]) -> WorkflowTask:
        @wraps(function)
        def start(self: Task, *args: Any, **kwargs: Any) -> Any:
            canvas = function(*args, **kwargs)
            if not isinstance(canvas, Signature):
                return canvas
            canvas, steps = plan(canvas, self.request.id, app)
            store.record_plan(self.backend.client, self.request.id, steps)
            raise self.replace(canvas)

        task: WorkflowTask = app.task(
            start,
            bind=True,
            base=WorkflowTask,
            name=name or f"{function.__module__}.{function.__qualname__}",
            prepare=staticmethod(prepare) if prepare else None,
            build=staticmethod(function),
            **({"show": staticmethod(show)} if show else {}),
            **options,
        )
        return task

    return decorate(build) if build is not None else decorate


def _show(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The arguments as a person would read them in a list of runs."""
    shown = [repr(value) for value in args] + [f"{name}={value!r}" for name, value in kwargs.items()]
    return ", ".join(text if len(text) <= _ARGUMENT_MAX_CHARS else text[:_ARGUMENT_MAX_CHARS] + "…" for text in shown)


if store.transition_commands not in ResultBackend.recorders:
    ResultBackend.recorders.append(store.transition_commands)
