"""`@workflow`: a function that returns a canvas becomes a task that starts a run."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from functools import cached_property, partial, wraps
from typing import Any, Generic, Literal, get_args, overload
from uuid import NAMESPACE_OID, uuid5

from celery.canvas import Signature
from kombu.utils.json import dumps
from kombu.utils.uuid import uuid

from agentlink.broker import chords, dead_letters, fanout, sweep_step
from agentlink.broker.calls import ALSO, ONCE
from agentlink.broker.cancelled import RUN_HEADER
from agentlink.broker.results import ResultBackend
from agentlink.settings import load
from agentlink.units import checked_name
from tasks import arguments
from tasks.app import app
from tasks.base import BaseTask, P
from tasks.large_arguments import put_away
from workflows import adding, body_errbacks, durations, errbacks, joining, recording, steering, store
from workflows.plan import plan
from workflows.run import WorkflowRun
from workflows.schedule_definition import timing_from
from workflows.states import RunState
from workflows.store import PLACE_HEADER, REPLAY_HEADER

Prepare = Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]
Show = Callable[[Any], str]

OnError = Literal["stop", "finish"]

_ARGUMENT_MAX_CHARS = 200
#: The options of a call with which its run is built again when it is resumed.
_KEPT_OPTIONS = ("queue", "priority", "routing_key", "exchange")


class WorkflowTask(BaseTask[P, Any], Generic[P]):
    """The task behind a workflow: calling it records a run and queues its start, all or nothing."""

    abstract = True
    builds_canvas = True
    #: Checks and completes a call's arguments where the call is made.
    prepare: Prepare | None = None
    #: What the final failure of a step means: `stop`, the run has failed and nothing more begins; `finish`, first those
    #: steps end that can.
    on_error: OnError = "stop"
    #: A workflow that is started with a failed run's id and failure; and whether completed steps are undone.
    failure_workflow: WorkflowTask | None = None
    undoes = False
    #: When it runs by itself, in the words of `define` in `schedule_definition`; None: never.
    timing: dict[str, Any] | None = None

    def show(self, result: Any) -> str:
        """A result as Markdown for people; JSON unless the workflow says otherwise."""
        return f"```json\n{json.dumps(result, indent=2, ensure_ascii=False)}\n```"

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> WorkflowRun:
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
        *,
        idempotency_key: str | None = None,
        tags: Sequence[str] = (),
        **options: Any,
    ) -> WorkflowRun:
        """Start a run with Celery's call options; see `delay`.

        Called again with the same `idempotency_key`, for as long as results are kept, it is the same run. `tags` are
        words by which runs are told apart; `agent` is the name of the agent it is called for.
        """
        args, kwargs = tuple(args or ()), dict(kwargs or {})
        headers = options.get("headers") or {}
        if PLACE_HEADER not in headers:  # a step's arguments are looked at where it runs: its failure is its own
            args, kwargs = self.prepared(args, kwargs)
        run_id = task_id or (uuid() if idempotency_key is None else keyed_id(self.name, idempotency_key))
        if idempotency_key is not None:
            options[ONCE] = (f"agentlink:once:{run_id}", int(load().keep_results_s * 1000))
        return self.start_prepared(args, kwargs, run_id, tags, **options)

    def start_prepared(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], run_id: str, tags: Sequence[str] = (), **options: Any
    ) -> WorkflowRun:
        """Start a run with arguments that were checked and completed before; see `apply_async`."""
        shown, headers = show_arguments(args, kwargs), options.get("headers") or {}
        options["task_id"] = run_id
        args, kwargs = put_away(app, self.name, args, kwargs, options)
        facts = {
            "call": dumps([args, kwargs, {name: options[name] for name in _KEPT_OPTIONS if options.get(name)}]),
            "finishes": int(self.on_error == "finish"),
            "compensates": int(self.failure_workflow is not None or self.undoes),
        }
        if agent := options.get("agent", load().agent):
            facts["agent"] = agent
        if tags:
            facts["tags"] = dumps([checked_name(tag) for tag in tags])
        root_id, began_in = self._began_in()
        # A workflow that is its run's last step has the run's id, and that run is recorded.
        created = (
            recording.creation_commands(
                run_id, self.name, shown, parent_of(run_id, headers), root_id, began_in, **facts
            )
            if headers.get(RUN_HEADER) != run_id
            else ()
        )
        options[ALSO] = [
            *options.pop(ALSO, ()),
            *created,
            *errbacks.keeping_commands(run_id, root_id, options.get("link_error")),
            *recording.standing_commands(run_id, headers),
        ]
        run: WorkflowRun = super().apply_async(args, kwargs, **(options | {"ignore_result": False}))
        return run

    @staticmethod
    def _began_in() -> tuple[str | None, str | None]:
        """What all began with, and the run of the step, where a step calls."""
        sender = app.current_worker_task
        if sender is None:
            return None, None
        return sender.request.root_id, getattr(sender.request, RUN_HEADER, None) or sender.request.id

    def prepared(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Check a call's arguments and complete them.

        Raises:
            CallRefused: they don't fit the function's parameters, or `prepare` refuses them.
        """
        arguments.check(self.__name__, self.parameters, args, kwargs)
        return self.prepare(*args, **kwargs) if self.prepare is not None else (args, kwargs)

    @cached_property
    def parameters(self) -> inspect.Signature:
        """What a call may give: what the function takes."""
        return inspect.signature(self.build)

    def AsyncResult(self, task_id: str, **kwargs: Any) -> WorkflowRun:  # noqa: N802 - Celery's name for it
        """The handle of one of this workflow's runs."""
        return WorkflowRun(task_id, app=self._get_app(), **kwargs)

    def build(self, *args: Any, **kwargs: Any) -> Signature:
        """The workflow function itself, callable without a broker."""
        raise NotImplementedError


@overload
def workflow(build: Callable[P, Any], /) -> WorkflowTask[P]: ...
@overload
def workflow(
    *,
    prepare: Prepare | None = None,
    show: Show | None = None,
    name: str | None = None,
    on_error: OnError = "stop",
    on_failure: WorkflowTask[Any] | None = None,
    undo: bool = False,
    **options: Any,
) -> Callable[[Callable[P, Any]], WorkflowTask[P]]: ...
def workflow(
    build: Callable[..., Any] | None = None,
    /,
    *,
    prepare: Prepare | None = None,
    show: Show | None = None,
    name: str | None = None,
    on_error: OnError = "stop",
    on_failure: WorkflowTask | None = None,
    undo: bool = False,
    **options: Any,
) -> Any:
    """Make a function that returns a canvas a workflow: `f.delay(...)` starts a run of it.

    The function runs in a worker. It must build the same canvas each time it gets the same arguments. Should it return
    anything but a canvas, that is the run's result. `prepare(*args, **kwargs) -> (args, kwargs)` runs in the caller's
    process first: it may refuse the call, or turn what only makes sense there (a relative path) into what makes sense
    anywhere. `show(result) -> Markdown` is how a person sees the result.

    A step that fails for good ends the run: with `on_error="stop"` at once, and what has not begun never does; with
    `"finish"` when the steps have ended that need not wait for it. Then, with `undo`, the steps that had succeeded are
    undone, newest first, by the tasks their own `@task(undo=...)` names, which get a step's result; and the workflow
    `on_failure` is started with the run's id and its failure (a dictionary: step, place, attempts, type, message …).

    `schedule="0 7 * * MON", timezone="Europe/Berlin"` or `every="15m"` has it run by itself, without arguments;
    `missed="once"` also makes up, by one run, for times at which no worker was there. While a run goes on its next time
    is left out; with `overlap="wait"` it waits for the end, with `"allow"` it does not. The other options are Celery's.

    Raises:
        ValueError: an option makes no sense; it says what would.
        ScheduleRefused: it can't run at such times; it says what would do.
    """
    if on_error not in get_args(OnError):
        raise ValueError(f"want on_error to be one of {', '.join(get_args(OnError))}, got {on_error!r}")

    def decorate(function: Callable[..., Any]) -> WorkflowTask:
        task_name = name or f"{function.__module__}.{function.__qualname__}"

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
            created = recording.creation_commands(
                request.id,
                self.name,
                show_arguments(args, kwargs),
                parent_id,
                request.root_id,
                state=RunState.RUNNING,
            )
            # A workflow that is its run's last step has the run's id: what it builds belongs to that run.
            within = place if place is not None and parent_id is None else ""
            if not within:
                created += errbacks.keeping_commands(request.id, request.root_id, request.errbacks)
            replay = getattr(request, REPLAY_HEADER, None) or 0
            client, patiently = self.backend.client, self.backend.patiently
            overrides = patiently(store.read_overrides, client, request.id) if replay else {}
            planned = plan(
                canvas, request.id, app, within, fanout.depth_of(request), request.root_id, replay, overrides
            )
            record = partial(recording.record_plan, root_id=request.root_id, within=within, graph=planned.graph)
            patiently(record, client, request.id, created, planned.steps)
            if not within:
                request.errbacks = None  # they are kept; or Celery would link them to the canvas
            raise self.replace(planned.canvas)

        task: WorkflowTask = app.task(
            start,
            bind=True,
            base=WorkflowTask,
            name=task_name,
            timing=timing_from(options, task_name, function),
            prepare=staticmethod(prepare) if prepare else None,
            build=staticmethod(function),
            on_error=on_error,
            failure_workflow=on_failure,
            undoes=undo,
            **({"show": staticmethod(show)} if show else {}),
            **options,
        )
        return task

    return decorate(build) if build is not None else decorate


def keyed_id(workflow: str, key: str) -> str:
    """The id of the run that was or will be called with a key."""
    return str(uuid5(NAMESPACE_OID, f"{workflow}/{key}"))


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


adding.install()
errbacks.install()
body_errbacks.install()
joining.install()
if recording.transition_commands not in ResultBackend.recorders:
    ResultBackend.recorders += [recording.transition_commands, durations.end_commands]
    dead_letters.resumers.append(steering.resume_for)
    sweep_step.lookups.append(store.which_go_on)
    chords.lookups.append(store.which_ended)
