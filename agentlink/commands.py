"""What `agentlink up`, `down`, `status`, `run`, `dead` and `doctor` do; the others have files of their own."""

from __future__ import annotations

import logging
import signal
from dataclasses import asdict
from functools import partial, wraps
from typing import Any

import click

from agentlink import log_lines, runs_commands, supervisor
from agentlink import up as up_process
from agentlink.broker import server
from agentlink.console import json_option, live_console, page_console, print_json
from agentlink.events_commands import events
from agentlink.guard_commands import guard
from agentlink.monitoring import health as health_check
from agentlink.schedule_commands import schedule
from agentlink.settings import load
from agentlink.signal_commands import signal_run, waiting

#: As Celery's own, since both are read in one terminal or file.
LOG_FORMAT = "[%(asctime)s: %(levelname)s/up] %(message)s"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="agentlink")
def cli() -> None:
    """Run many agents' workflows on one machine without running that machine over."""


for command in (guard, runs_commands.runs, runs_commands.show, runs_commands.cancel, runs_commands.resume):
    cli.add_command(command)
for command in (signal_run, waiting, schedule, events):
    cli.add_command(command)


@cli.command()
@click.option("--detach", is_flag=True, help="Return as soon as everything is up, and keep it running.")
def up(detach: bool) -> None:
    """Start the broker, a worker and Flower, and keep them running.

    The first Ctrl-C drains: running tasks end, nothing new starts. The second stops at once; what did not end goes
    back to its queue. The broker keeps running with everything that is queued: `agentlink down` stops it too.
    """
    settings = load()
    if detach:
        state, started = up_process.start(settings, wait_for_worker=True)
        if not started:
            raise up_process.AlreadyUp(str(state["pid"]), str(settings.home))
        log = up_process.log_path(settings)
        click.echo(f"AgentLink is up (pid {state['pid']}); {_flower_line(state)}; log: {log}")
        return
    logging.basicConfig(level=settings.log_level)
    text = logging.Formatter(LOG_FORMAT)
    logging.root.handlers[0].setFormatter(log_lines.formatter(settings.log_format, text, process="up"))
    supervisor.Supervisor(settings, on_ready=lambda state: click.echo(f"AgentLink is up; {_flower_line(state)}")).run()


@cli.command()
def down() -> None:
    """Stop what `up` started and the embedded broker, with all its data saved.

    Running tasks end first; Ctrl-C does not wait for them, they go back to their queue.
    """
    settings = load()
    stopped = up_process.stop(settings)
    broker_stopped = settings.embedded and server.stop(settings)
    parts = [*(["worker and Flower"] if stopped else []), *(["broker"] if broker_stopped else [])]
    click.echo(f"stopped: {', '.join(parts)}" if parts else "nothing was running")


@cli.command()
@json_option
def status(as_json: bool) -> None:
    """Show the broker, the workers and their guards, the queues and the latest runs."""
    settings = load()
    from agentlink import status as status_page  # Celery takes a third of a second to import

    facts = status_page.collect(settings)
    if as_json:
        print_json(facts)
    else:
        status_page.show(facts, page_console())


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("workflow")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--keep", is_flag=True, help="Leave running what had to be started.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON and nothing else.")
@click.pass_context
def run(context: click.Context, workflow: str, arguments: tuple[str, ...], keep: bool, as_json: bool) -> None:
    """Run WORKFLOW with ARGUMENTS, show its progress and print its answer.

    Arguments are given in the order of the workflow's parameters, or by name: `--top 5`. What is not running yet is
    started first, and stopped at the end unless --keep or another `agentlink run` uses it.
    """
    settings = load()
    from agentlink import on_demand, run_view  # Celery takes a third of a second to import

    task = run_view.find_workflow(workflow)
    args, kwargs = run_view.parse_arguments(task, arguments)
    console = live_console(stderr=as_json)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout 60 agentlink run` is as good as Ctrl-C
    handle, succeeded = None, None
    with on_demand.use(settings, keep=keep) as used:
        try:
            # Called before anything else is started: a call that is refused starts nothing.
            handle = run_view.call(task, args, kwargs, settings)
            succeeded = run_view.follow(task, handle, used.start(), console, as_json=as_json)
        except KeyboardInterrupt:
            console.print("[dim]Interrupted; running steps may end, unless you press Ctrl-C again.[/]")
    if handle and succeeded is None:
        when = " when AgentLink is up again: `agentlink up`" if used.stopped else ""
        console.print(f"Run {handle.id} goes on{when}; `agentlink status` shows how far it is.", soft_wrap=True)
    elif used.stopped:
        console.print("[dim]Stopped what was started for this run; `agentlink up` keeps it running.[/]", soft_wrap=True)
    if succeeded is None:
        raise click.Abort
    context.exit(0 if succeeded else 1)


@cli.command()
@click.argument("run_id", metavar="RUN")
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until the run has ended.")
@click.option("--json", "as_json", is_flag=True, help="Print each line, and each part of the output, as JSON.")
def logs(run_id: str, follow: bool, as_json: bool) -> None:
    """Print what the steps of RUN, an id or what it begins with, have logged and put out."""
    from agentlink import run_logs, running, runs_page  # Celery takes a third of a second to import

    with running.broker(load()) as client:
        items = run_logs.items(client, runs_page.find(client, run_id).id, live=follow)
        run_logs.write(run_logs.as_json(items) if as_json else run_logs.as_text(items), partial(click.echo, nl=False))


def _filters(command: Any) -> Any:
    command = click.option("--text", help="Only letters with this text in their reason or arguments.")(command)
    return click.option("--task", help="Only letters of this task, by its full name or its last part.")(command)


@cli.group(invoke_without_command=True)
@_filters
@json_option
@click.pass_context
def dead(context: click.Context, task: str | None, text: str | None, as_json: bool) -> None:
    """List the tasks whose process died at every attempt, newest first; send them again or drop them.

    An ID may be cut to as many characters as tell it from the others.
    """
    if context.invoked_subcommand is not None:
        if task or text or as_json:
            raise click.UsageError(f"options of `{context.invoked_subcommand}` come after it")
        return
    from agentlink import dead as letters  # Celery takes a third of a second to import
    from agentlink import running

    with running.broker(load()) as client:
        found = letters.chosen(client, (), all_of_them=True, task=task, text=text)
        if as_json:
            print_json([asdict(letter) for letter in found])
        else:
            letters.show_list(client, found, page_console())


@dead.command("show")
@click.argument("id_", metavar="ID")
@json_option
def dead_show(id_: str, as_json: bool) -> None:
    """Show everything that is known of a dead letter, its message and arguments whole."""
    from agentlink import dead as letters
    from agentlink import running

    with running.broker(load()) as client:
        facts = letters.everything(client, id_)
    if as_json:
        print_json(facts)
    else:
        letters.show(facts, page_console())


def _choice(command: Any) -> Any:
    """The arguments by which dead letters are chosen: ids, or all that the filters leave."""

    @click.argument("ids", metavar="[ID]...", nargs=-1)
    @click.option("--all", "all_of_them", is_flag=True, help="All of them, or all that --task and --text leave.")
    @_filters
    @wraps(command)
    def checked(ids: tuple[str, ...], all_of_them: bool, task: str | None, text: str | None) -> None:
        if bool(ids) == all_of_them:
            raise click.UsageError("want either ids or --all")
        if ids and (task or text):
            raise click.UsageError("--task and --text go with --all, not with ids")
        from agentlink import dead as letters
        from agentlink import running

        with running.broker(load()) as client:
            command(client, letters.chosen(client, ids, all_of_them=all_of_them, task=task, text=text))

    return checked


@dead.command("send")
@_choice
def dead_send(client: Any, chosen: list[Any]) -> None:
    """Queue dead letters again, with all their attempts before them; a run they belong to goes on."""
    from agentlink.broker import dead_letters

    click.echo(f"sent again: {dead_letters.send_again(client, chosen)}")


@dead.command("drop")
@_choice
def dead_drop(client: Any, chosen: list[Any]) -> None:
    """Forget dead letters. Their runs stay failed."""
    from agentlink.broker import dead_letters

    click.echo(f"dropped: {dead_letters.drop(client, [letter.id for letter in chosen])}")


@cli.command()
@click.pass_context
def doctor(context: click.Context) -> None:
    """Check everything a start needs, and say in words what is wrong."""
    from agentlink import doctor as checks

    failed = False
    for check in checks.run_all():
        failed |= not check.passed
        click.echo(f"{click.style('ok', fg='green') if check.passed else click.style('!!', fg='red')}  {check.says}")
    context.exit(1 if failed else 0)


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def health(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Tell by the exit status whether the workers of this host live; no broker is needed."""
    context.exit(health_check.main(list(arguments)))


def _flower_line(state: dict[str, Any]) -> str:
    return f"Flower: {state['flower']}" if state["flower"] else "Flower is off"
