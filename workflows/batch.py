"""Batch: the commands of a file, each started as soon as those it needs have succeeded.

    run = batch.delay("jobs.toml")
    run.get()["jobs"]

    [jobs.fetch]
    command = "curl -sO https://example.org/data.csv"

    [jobs.count]
    command = ["wc", "-l", "data.csv"]
    needs = ["fetch"]
    memory = "200MB"

The file is read and checked where the call is made; commands run in its folder.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

from celery.canvas import Signature
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.time import get_exponential_backoff_interval

from agentlink import settings
from agentlink.broker.calls import DELIVERIES_HEADER
from agentlink.broker.cancelled import RUN_HEADER
from agentlink.home import from_home
from agentlink.units import format_duration, shown
from tasks import command
from tasks.app import task
from tasks.command_errors import CommandEndedBadly, CommandError, CommandReaperLost
from tasks.retries import BACKOFF_MAX_S, BACKOFF_S
from workflows.base import workflow
from workflows.batch_plan import read_plan
from workflows.errors import CallRefused, WorkflowError
from workflows.graph import Graph, GraphTask, ids_before

# A job's own timeout comes first; these are for one that can't be ended by it.
_SOFT_LIMIT_AFTER_S, _HARD_LIMIT_AFTER_S = 60, 90
_FOLDER_NAME_MAX = 80
_LISTED_MAX = 20


class JobFailed(WorkflowError):
    """A job's command has not ended well, at its last attempt."""

    def __init__(self, job: str, reason: str) -> None:
        super().__init__(job, reason)
        self.job, self.reason = job, reason

    def __str__(self) -> str:
        return f"{self.job}: {self.reason}"


class JobsFailed(WorkflowError):
    """All that could be done is done, and some jobs have failed: the message names them, and those not run."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return self.problem


@task(name="workflows.batch.job", bind=True, base=GraphTask, max_retries=None)
def job(
    self: Any,
    name: str,
    words: list[str] | str,
    folder: str,
    place: int,
    env: dict[str, str],
    timeout_s: float | None,
    retries: int,
) -> dict[str, Any]:
    """Run one job's command; what it says is kept in files in the run's folder, of each attempt."""
    attempt = 1 + self.request.retries + (getattr(self.request, DELIVERIES_HEADER, 0) or 0)
    output_folder = _output_folder(self.request, name, place) / str(attempt)
    try:
        finished = command.run(
            words,
            cwd=folder,
            env=env,
            timeout_s=timeout_s,
            output_cap_bytes=0,
            output_folder=output_folder,
            shell=isinstance(words, str),
        )
    except (CommandEndedBadly, CommandReaperLost, SoftTimeLimitExceeded) as error:
        failed = JobFailed(name, f"{_reason(error)} (attempt {attempt}); what it said is in {output_folder}")
        pause_s = get_exponential_backoff_interval(BACKOFF_S, self.request.retries, BACKOFF_MAX_S, full_jitter=True)
        raise self.retry(exc=failed, countdown=pause_s, max_retries=retries) from error
    except CommandError as error:
        raise JobFailed(name, str(error)) from error
    return {
        "name": name,
        "exit_code": finished.exit_status,
        "seconds": finished.duration_s,
        "output": finished.stdout_file,
        "errors": finished.stderr_file,
        "attempts": attempt,
    }


@task(name="workflows.batch.collect", bind=True, base=GraphTask, memory="100MB")
def collect(self: Any, file: str, names: list[str], started_at: float) -> dict[str, Any]:
    """What has become of all jobs.

    Raises:
        JobsFailed: not all have succeeded.
    """
    ends = [self.backend.patiently(self.backend.get_task_meta, step_id) for step_id in ids_before(self.request)]
    failed = [str(meta["result"]) for meta in ends if meta["status"] == "FAILURE"]
    not_run = [name for name, meta in zip(names, ends, strict=True) if meta["status"] not in ("SUCCESS", "FAILURE")]
    if failed or not_run:
        skipped = f"; not run, since they need those: {_listed(not_run, ', ')}" if not_run else ""
        raise JobsFailed(f"{len(failed)} of {len(names)} jobs failed: {_listed(failed, '; ')}{skipped}")
    seconds = round(max(0.0, time.time() - started_at), 3)
    return {"file": file, "seconds": seconds, "jobs": [meta["result"] for meta in ends]}


def prepare(file: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read and check the file where the call is made; what is sent is the plan.

    Raises:
        CallRefused: it is not the name of a file.
        BatchInvalid: with all that is wrong with the file, line by line.
    """
    text = os.fspath(file) if isinstance(file, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise CallRefused("batch", f"want a file of jobs, got {shown(file)}")
    return (read_plan(os.path.abspath(os.path.expanduser(text))),), {}  # noqa: PTH100, PTH111 - resolve() follows links


def show(result: dict[str, Any]) -> str:
    """A table of all jobs, and where their output is."""
    lines = ["| job | exit code | time | attempts | output |", "|---|---:|---:|---:|---|"]
    # The folder that all output is below is told once: with it, a path is too long for the table.
    folders = [os.path.dirname(one["output"]) for one in result["jobs"] if one["output"]]  # noqa: PTH120 - text is wanted
    folder = os.path.commonpath(folders) if folders else None
    for one in result["jobs"]:
        name = re.sub(r"([\\`*_\[\]|<>~#])", r"\\\1", one["name"])
        output = f"`{os.path.relpath(one['output'], folder)}`" if one["output"] else "none"
        duration = format_duration(one["seconds"])
        lines.append(f"| {name} | {one['exit_code']} | {duration} | {one['attempts']} | {output} |")
    below = [f"Output below  \n`{from_home(folder)}`"] if folder else []
    return "\n".join([*lines, "", f"{len(result['jobs'])} jobs of `{from_home(result['file'])}`", "", *below])


@workflow(prepare=prepare, show=show)
def batch(file: Any) -> Signature:
    """Run the jobs of a file, in the order they need each other and otherwise at the same time."""
    plan: dict[str, Any] = file  # what `prepare` has made of it
    jobs = plan["jobs"]
    steps = [_step(one, plan["folder"], place) for place, one in enumerate(jobs)]
    last = collect.si(plan["file"], [one["name"] for one in jobs], time.time())
    return Graph(steps, last, needs=[one["needs"] for one in jobs], keep_going=plan["keep_going"])


def _step(one: dict[str, Any], folder: str, place: int) -> Signature:
    timeout_s = one["timeout_s"]
    step = job.si(one["name"], one["command"], folder, place, one["env"], timeout_s, one["retries"])
    if timeout_s is not None:
        step.set(soft_time_limit=timeout_s + _SOFT_LIMIT_AFTER_S, time_limit=timeout_s + _HARD_LIMIT_AFTER_S)
    needs = {"memory": one["memory_bytes"], "cpu": one["cpu_cores"]}
    return step.set(**{name: value for name, value in needs.items() if value is not None})


def _output_folder(request: Any, name: str, place: int) -> Path:
    """Of one job; numbered, since different names may look the same when only safe characters are left."""
    root_id, run_id = str(request.root_id), str(getattr(request, RUN_HEADER))
    folder = settings.load().runs_folder / root_id
    if run_id != root_id:
        folder /= run_id
    safe = re.sub(r"[^\w.,=\[\]-]+", "_", name, flags=re.ASCII)[:_FOLDER_NAME_MAX]
    return folder / f"{place + 1:04d}-{safe}"


def _reason(error: Exception) -> str:
    return "it took longer than a task may" if isinstance(error, SoftTimeLimitExceeded) else str(error)


def _listed(texts: list[str], between: str) -> str:
    more = [f"and {len(texts) - _LISTED_MAX} more"] if len(texts) > _LISTED_MAX else []
    return between.join(texts[:_LISTED_MAX] + more)
