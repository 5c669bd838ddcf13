"""`@workflow`: a function that returns a canvas becomes a task that starts a run."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, overload

from celery.canvas import Signature
from kombu.utils.uuid import uuid

from agentlink.broker import chords, dead_letters, fanout, sweep_step
from agentlink.broker.calls import ALSO
from agentlink.broker.results import ResultBackend
from tasks.app import app
from tasks.base import BaseTask
from workflows import errbacks, joining, store
from workflows.errors import CallRefused
from workflows.plan import plan
from workflows.run import WorkflowRun
from workflows.store import PLACE_HEADER, RUN_HEADER

Prepare = Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]
Show = Callable[[Any], str]

_ARGUMENT_MAX_CHARS = 200


class WorkflowTask(BaseTask):
    """The task behind a workflow: calling it records a run and queues its start, all or nothing."""

    abstract = True
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
            FanOutExceeded: the same; the agent that calls, or the run in a step of which it is called, has
                more steps by now than it may.
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
        headers = options.get("headers") or {}
        if PLACE_HEADER not in headers:  # a step's arguments are looked at where it runs: its failure is its own
            args, kwargs = self.prepared(args, kwargs)
        run_id = task_id or uuid()
        sender = app.current_worker_task
        root_id = sender and sender.request.root_id
        options[ALSO] = [
            *store.creation_commands(
                run_id, self.name, show_arguments(args, kwargs), parent_of(run_id, headers), root_id
            ),
            *errbacks.keeping_commands(run_id, root_id, options.get("link_error")),
            *store.standing_commands(run_id, headers),
        ]
        run: WorkflowRun = super().apply_async(args, kwargs, task_id=run_id, **(options | {"ignore_result": False}))
        return run

    def prepared(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Check a call's arguments and complete them.

        Raises:
            CallRefused: they don't fit the function's parameters, or `prepare` refuses them.
        """
        try:
            inspect.signature(self.build).bind(*args, **kwargs)
        except TypeError as error:
            raise CallRefused(self.__name__, f"{error}; it takes {inspect.signature(self.build)}") from None
        return self.prepare(*args, **kwargs) if self.prepare is not None else (args, kwargs)

    def AsyncResult(self, task_id: str, **kwargs: Any) -> WorkflowRun:  # noqa: N802 - Celery's name for it
        """The handle of one of this workflow's runs."""
        return WorkflowRun(task_id, app=self._get_app(), **kwargs)

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
        def start(self: WorkflowTask, *args: Any, **kwargs: Any) -> Any:
            request = self.request
            place = getattr(request, PLACE_HEADER, None)
            if place is not None or request.called_directly:
                args, kwargs = self.prepared(args, kwargs)
            canvas = function(*args, **kwargs)
            if not isinstance(canvas, Signature):
                return canvas
            if request.called_directly or request.is_eager:
                return canvas.apply().get(disable_sync_subtasks=False)
            headers = {PLACE_HEADER: place, RUN_HEADER: getattr(request, RUN_HEADER, None)}
            parent_id = parent_of(request.id, headers)
            created = store.creation_commands(
                request.id, self.name, show_arguments(args, kwargs), parent_id, request.root_id
            )
            # A workflow that is its run's last step has the run's id: what it builds belongs to that run.
            within = place if place is not None and parent_id is None else ""
            if request.errbacks and not within:
                errbacks.keep(request.id, request.root_id, request.errbacks)
                request.errbacks = None  # or Celery would link them to the canvas
            canvas, steps = plan(canvas, request.id, app, within, fanout.depth_of(request), request.root_id)
            self.backend.patiently(
                partial(
                    store.record_plan,
                    self.backend.client,
                    request.id,
                    created,
                    steps,
                    root_id=request.root_id,
                    within=within,
                )
            )
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


def parent_of(run_id: str, headers: dict[str, Any]) -> str | None:
    """The run that a call with these headers is a step of, unless it is that run itself."""
    parent_id: str | None = headers.get(RUN_HEADER)
    return parent_id if parent_id != run_id else None


def show_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The arguments as a person would read them in a list of runs."""
    shown = [_readable(value) for value in args] + [
        f"{_readable(name)[1:-1]}={_readable(v)}" for name, v in kwargs.items()
    ]
    return ", ".join(text if len(text) <= _ARGUMENT_MAX_CHARS else text[:_ARGUMENT_MAX_CHARS] + "…" for text in shown)


def _readable(value: Any) -> str:
    return repr(value).encode("utf-8", "backslashreplace").decode()


errbacks.install()
joining.install()
if store.transition_commands not in ResultBackend.recorders:
    ResultBackend.recorders.append(store.transition_commands)
    dead_letters.reopeners.append(store.reopen_commands)
    sweep_step.lookups.append(store.which_go_on)
    chords.lookups.append(store.which_ended)
