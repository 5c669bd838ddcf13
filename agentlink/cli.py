"""The `agentlink` command. A mistake of the user's is one message on stderr, never a traceback."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.logging import RichHandler

from agentlink import supervisor
from agentlink.broker import server
from agentlink.errors import AgentLinkError
from agentlink.settings import Settings, load

#: Exit statuses: the shell's own for Ctrl-C, and those of click for wrong usage (2).
FAILED, INTERRUPTED = 1, 130
UP_START_TIMEOUT_S = 60.0


def main() -> None:
    """Entry point of the console script."""
    # Like `celery`: modules beside the user can be imported by name.
    sys.path.insert(0, str(Path.cwd()))
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except AgentLinkError as error:
        click.echo(f"agentlink: {error}", err=True)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="agentlink")
def cli() -> None:
    """Run many agents' workflows on one machine without running that machine over."""


@cli.command()
@click.option("--detach", is_flag=True, help="Return as soon as everything is up, and keep it running.")
def up(detach: bool) -> None:
    """Start the broker, a worker and Flower, and keep them running.

    The first Ctrl-C drains: running tasks end, nothing new starts. The second stops at once; what did not end goes
    back to its queue. The broker keeps running with everything that is queued: `agentlink down` stops it too.
    """
    settings = load()
    if detach:
        state = start_detached(settings)
        click.echo(f"AgentLink is up (pid {state['pid']}); {_flower_line(state)}; log: {_up_log(settings)}")
        return
    logging.basicConfig(level=settings.log_level, format="%(message)s", handlers=[_log_handler()])
    supervisor.Supervisor(settings, on_ready=lambda state: click.echo(f"AgentLink is up; {_flower_line(state)}")).run()


@cli.command()
def down() -> None:
    """Stop what `up` started and the embedded broker, with all its data saved."""
    settings = load()
    stopped = supervisor.stop_supervisor(settings)
    broker_stopped = settings.embedded and server.stop(settings)
    parts = [*(["worker and Flower"] if stopped else []), *(["broker"] if broker_stopped else [])]
    click.echo(f"stopped: {', '.join(parts)}" if parts else "nothing was running")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def status(as_json: bool) -> None:
    """Show the broker, the workers and their guards, the queues and the latest runs."""
    from agentlink import status as status_page  # Celery takes a third of a second to import

    facts = status_page.collect(load())
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        # Piped into a file or a pager there is no width to fit into, and a run's id is to be copied whole.
        status_page.show(facts, Console(width=None if sys.stdout.isatty() else 200))


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("workflow")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--keep", is_flag=True, help="Leave running what had to be started.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON and nothing else.")
def run(workflow: str, arguments: tuple[str, ...], keep: bool, as_json: bool) -> None:
    """Run WORKFLOW with ARGUMENTS, show its progress and print its answer.

    Arguments are given in the order of the workflow's parameters, or by name: `--top 5`. What is not running yet is
    started first, and stopped at the end unless --keep.
    """
    from agentlink import run_view  # Celery takes a third of a second to import

    settings = load()
    task = run_view.find_workflow(workflow)
    args, kwargs = run_view.parse_arguments(task, arguments)
    console = Console(stderr=as_json, highlight=False)
    broker_was_up = not settings.embedded or server.is_running(settings)
    was_up = supervisor.read_state(settings)
    # Called before anything is started: a call that is refused starts nothing.
    handle = task.delay(*args, **kwargs)
    state = was_up or start_detached(settings)
    try:
        succeeded = run_view.follow(task, handle, state, console, as_json=as_json)
    finally:
        if not was_up and not keep:
            supervisor.stop_supervisor(settings)
            if not broker_was_up:
                server.stop(settings)
    if not was_up and not keep:
        console.print(
            "[dim]Stopped what was started for this run. `agentlink up` keeps it running, with Flower.[/]",
            soft_wrap=True,
        )
    sys.exit(0 if succeeded else FAILED)


@cli.command()
def doctor() -> None:
    """Check everything a start needs, and say in words what is wrong."""
    from agentlink import doctor as checks

    failed = False
    for check in checks.run_all():
        failed |= not check.passed
        click.echo(f"{click.style('ok', fg='green') if check.passed else click.style('!!', fg='red')}  {check.says}")
    sys.exit(FAILED if failed else 0)


def start_detached(settings: Settings) -> dict[str, Any]:
    """Start `agentlink up` in the background and wait until it is up; return its state.

    Raises:
        AgentLinkError: it ended instead, with its last words.
    """
    server.make_folder(settings.home)
    with _up_log(settings).open("ab") as log:
        begins_at = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "agentlink", "up"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            umask=0o077,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    deadline = time.monotonic() + UP_START_TIMEOUT_S
    while not (state := supervisor.read_state(settings)):
        if process.poll() is not None or time.monotonic() > deadline:
            words = _up_log(settings).read_bytes()[begins_at:].decode(errors="replace").strip().splitlines()
            raise AgentLinkError(f"`agentlink up` did not come up: {words[-1] if words else 'it said nothing'}")
        time.sleep(0.02)
    process.returncode = 0  # it goes on without us; the interpreter need not warn of that
    return state


def _up_log(settings: Settings) -> Path:
    return settings.home / "up.log"


def _flower_line(state: dict[str, Any]) -> str:
    return f"Flower: {state['flower']}" if state["flower"] else "Flower is off"


def _log_handler() -> logging.Handler:
    handler = RichHandler(console=Console(stderr=True), show_path=False, omit_repeated_times=False)
    return handler if sys.stderr.isatty() else logging.StreamHandler()
