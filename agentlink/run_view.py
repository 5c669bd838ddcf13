"""`agentlink run`: from words on a command line to a call, and from a run to what a person sees of it."""

from __future__ import annotations

import inspect
import json
import time
import typing
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import redis
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from agentlink.broker import server
from agentlink.broker.errors import BrokerUnavailable
from agentlink.errors import AgentLinkError
from agentlink.modules import import_all
from agentlink.settings import Settings, load
from agentlink.units import format_duration, shown
from tasks import app
from workflows import Progress as RunProgress
from workflows import RunState, StepRecord, WorkflowRun
from workflows.base import WorkflowTask
from workflows.errors import CallRefused
from workflows.states import TERMINAL_RUN_STATES, StepState
from workflows.store import RunRecord

POLL_S = 0.1
# A worker takes a second or two to start; only after longer is its absence worth a word.
QUIET_START_S = 10.0


class WorkflowUnknown(AgentLinkError):
    """No workflow has this name."""

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(name, known)
        self.name, self.known = name, known

    def __str__(self) -> str:
        return (
            f"no workflow is called {shown(self.name)}; known are {', '.join(self.known)} "
            "(AGENTLINK_IMPORTS names the modules with your own)"
        )


def find_workflow(name: str) -> WorkflowTask:
    """The workflow of this name, in full or its last part.

    Raises:
        WorkflowUnknown: there is none; it lists those there are.
        ModuleBroken: a module of the user's can't be imported.
    """
    import_all(load())
    known = {task.name: task for task in app.tasks.values() if isinstance(task, WorkflowTask)}
    matches = [task for full, task in known.items() if full == name or full.rsplit(".", 1)[-1] == name]
    if len(matches) == 1:
        return matches[0]
    raise WorkflowUnknown(name, sorted(task.name for task in matches) or sorted(known))


def parse_arguments(task: WorkflowTask, words: Iterable[str]) -> tuple[list[Any], dict[str, Any]]:
    """Turn the words of a command line into arguments of the types that the workflow's parameters have.

    Raises:
        CallRefused: a word is missing, too many, or can't be what its parameter wants.
    """
    args, kwargs = _by_name(task, list(words))
    signature = inspect.signature(task.build)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise CallRefused(task.name, f"{error}; it takes {_usage(signature)}") from None
    return _with_types(task, bound)


def named_arguments(task: WorkflowTask, words: Mapping[str, str | list[str]]) -> tuple[list[Any], dict[str, Any]]:
    """The same for words by the names of parameters, as a form has them: a list for those that take any number.

    Raises:
        CallRefused: a word can't be what its parameter wants, or there is no such parameter.
    """
    signature = inspect.signature(task.build)
    if unknown := words.keys() - signature.parameters.keys():
        raise CallRefused(task.name, f"there is no {min(unknown)!r}; it takes {_usage(signature)}")
    ordered = OrderedDict((name, words[name]) for name in signature.parameters if name in words)
    return _with_types(task, inspect.BoundArguments(signature, ordered))


def _with_types(task: WorkflowTask, bound: inspect.BoundArguments) -> tuple[list[Any], dict[str, Any]]:
    hints = typing.get_type_hints(task.build)
    for name, value in bound.arguments.items():
        kind, wanted = bound.signature.parameters[name].kind, hints.get(name, Any)
        if kind is inspect.Parameter.VAR_POSITIONAL:
            bound.arguments[name] = tuple(_typed(task, name, word, wanted) for word in value)
        elif kind is inspect.Parameter.VAR_KEYWORD:
            bound.arguments[name] = {word: _typed(task, word, value[word], wanted) for word in value}
        else:
            bound.arguments[name] = _typed(task, name, value, wanted)
    return list(bound.args), bound.kwargs


def _usage(signature: inspect.Signature) -> str:
    """The parameters as one writes their arguments on a command line."""
    words = []
    for name, parameter in signature.parameters.items():
        word, is_open = name.upper(), parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD):
            has_default = parameter.default is not parameter.empty
            word = f"--{name.replace('_', '-')} {parameter.default if has_default else word}"
        optional = is_open or parameter.default is not parameter.empty
        words.append(f"[{word}{' ...' if is_open else ''}]" if optional else word)
    return " ".join(words) or "no arguments"


def _by_name(task: WorkflowTask, words: list[str]) -> tuple[list[str], dict[str, str]]:
    args: list[str] = []
    kwargs: dict[str, str] = {}
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            args.append(word)
            continue
        name, has_value, value = word[2:].partition("=")
        if not has_value:
            if not words:
                raise CallRefused(task.name, f"--{name} needs a value")
            value = words.pop(0)
        kwargs[name.replace("-", "_")] = value
    return args, kwargs


def _typed(task: WorkflowTask, name: str, word: str, wanted: Any) -> Any:
    """The word itself where text will do, else as its parameter's type, else read as JSON."""
    adapter: TypeAdapter[Any] = TypeAdapter(wanted)
    try:
        return adapter.validate_python(word)
    except ValidationError as as_text:
        try:
            return adapter.validate_json(word)
        except ValidationError:
            if typing.get_origin(wanted) is list:  # one word for a list of one
                return [word]
            problem = as_text.errors(include_url=False)[0]["msg"]
            raise CallRefused(task.name, f"{name}: {problem[0].lower()}{problem[1:]}, got {shown(word)}") from None


def call(task: WorkflowTask, args: list[Any], kwargs: dict[str, Any], settings: Settings) -> WorkflowRun:
    """Start a run, and the embedded broker with all the time it may take to load its data.

    Raises:
        CallRefused: the arguments make no sense; nothing is started.
        BrokerError: the broker can't be started or reached; nothing of this call will run later.
    """
    try:
        return task.delay(*args, **kwargs)
    except BrokerUnavailable:
        if not settings.embedded:
            raise
        server.ensure_running(settings)
        return task.delay(*args, **kwargs)


def follow(task: WorkflowTask, run: WorkflowRun, state: dict[str, Any], console: Console, *, as_json: bool) -> bool:
    """Show a run until it ends, then its answer or why it failed; return whether it succeeded."""
    console.print(f"[bold]{task.name}[/] run {run.id}", soft_wrap=True)
    if state["flower"]:
        console.print(f"Flower: {state['flower']}", soft_wrap=True)
    record = _watch(run, console)
    if record.state is not RunState.SUCCEEDED:
        failure = record.failure or {}
        what = escape(f"{failure.get('step') or task.name}: {failure.get('error')}")
        console.print(f"[red]{record.state}[/]: {what}", soft_wrap=True)
        return False
    # The result was written before the state that ended the watch.
    result = run.get(timeout=30)
    if as_json:
        print(json.dumps(result, ensure_ascii=False))  # noqa: T201 - the answer, alone on stdout
    else:
        console.print(Markdown(task.show(result)))
        console.print(
            f"[green]{record.state}[/] in {format_duration((record.ended_at or 0) - record.called_at)}", soft_wrap=True
        )
    return True


def _watch(run: WorkflowRun, console: Console) -> RunRecord:
    """Show the run's steps until it ends, also when the broker goes away for a while."""
    bars: dict[str, TaskID] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[done]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    quiet_until, told = time.monotonic() + QUIET_START_S, set[str]()
    with Progress(*columns, console=console, transient=False) as progress:
        whole = progress.add_task("run", total=1.0, done="", note="")
        while True:
            word = None
            try:
                record = run.record()  # read before the steps: those read after it are the last word
                steps = run.steps()
                _update(progress, bars, steps, console)
                progress.update(whole, **_whole(run.progress_by(record, steps)))
                if record.state in TERMINAL_RUN_STATES:
                    return record
            except (redis.ConnectionError, redis.TimeoutError):
                word = "the broker does not answer; waiting for it"
            if not bars and time.monotonic() > quiet_until:
                word = word or "no worker has taken the run yet; `agentlink status` tells who is there"
            if word and word not in told:
                told.add(word)
                console.print(word)
            time.sleep(POLL_S)


def _whole(so_far: RunProgress) -> dict[str, Any]:
    """What the run's own bar shows."""
    left = "" if so_far.ended or so_far.left_s is None else f", {format_duration(so_far.left_s)} left"
    message = (so_far.message or "").splitlines() or [""]
    return {"completed": so_far.fraction, "done": f"{int(100 * so_far.fraction)} %{left}", "note": message[0]}


def _update(progress: Progress, bars: dict[str, TaskID], steps: list[StepRecord], console: Console) -> None:
    """One bar for each kind of step, in the order in which they come in the canvas: how many have succeeded."""
    totals, done = Counter[str](), Counter[str]()
    for step in steps:
        kind = step.name.rsplit(".", 1)[-1]
        totals[kind] += 1
        done[kind] += step.state is StepState.SUCCEEDED
    for kind, total in totals.items():
        if kind not in bars:
            bars[kind] = progress.add_task(kind, total=total, done="", note="")
        before = progress.tasks[bars[kind]].completed
        progress.update(bars[kind], completed=done[kind], total=total, done=f"{done[kind]}/{total}")
        if not console.is_terminal and done[kind] == total and before != total:
            console.print(f"  {kind}: {total} of {total} done")
