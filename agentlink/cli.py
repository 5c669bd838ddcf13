"""Entry point of the `agentlink` command. A mistake of the user's is one message on stderr, never a traceback."""

from __future__ import annotations

import io
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

#: Exit statuses: the second is the shell's own for Ctrl-C. Wrong usage is click's 2.
FAILED, INTERRUPTED = 1, 130

_OUR_PACKAGES = ("agentlink", "celeryconfig", "resource_guard", "tasks", "workflows")


def main() -> None:
    """Run the command that the command line asks for, and end this process."""
    _make_output_safe()
    if sys.argv[1:2] == ["health"]:
        # Asked every few seconds, and the others' imports take ten times as long as its answer.
        from agentlink.monitoring import health

        sys.exit(health.main(sys.argv[2:]))
    try:
        # Like `celery`: modules beside the user can be imported by name.
        sys.path.insert(0, str(Path.cwd()))
    except OSError as error:
        sys.exit(f"agentlink: the current folder is gone: {error.strerror}; run this in another one")
    try:
        sys.exit(_main())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _drop_output()  # its reader (`head`, say) has seen enough, and there is nobody to tell
        sys.exit(FAILED)


def _main() -> int:
    # Here, so that Ctrl-C while they are imported is no traceback either.
    import click

    if hiding := _hiding_ours():
        click.echo(
            f"agentlink: {hiding} has the name of a package of AgentLink's own, which can't be found for it: "
            "rename it, or run this in another folder",
            err=True,
        )
        return FAILED

    from agentlink.commands import cli
    from agentlink.errors import AgentLinkError

    try:
        status: int | None = cli(standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except AgentLinkError as error:
        click.echo(f"agentlink: {error}", err=True)
        return FAILED
    except BrokenPipeError:
        raise
    except OSError as error:
        click.echo(f"agentlink: {error.filename or 'system'}: {error.strerror or error}", err=True)
        if error.filename is None:
            _drop_output()  # it may be what can't be written, and is not to fail once more at the end
        return FAILED
    return status or 0


def _make_output_safe() -> None:
    """Whatever is printed can be: a locale need not know every character, and the output may be closed."""
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - for the whole process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Nothing is left to be flushed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _hiding_ours() -> Path | None:
    """A module or folder of the user's that Python finds, here or in a worker started here, in place of ours."""
    ours = Path(__file__).resolve().parents[1]
    for name in _OUR_PACKAGES:
        spec = PathFinder.find_spec(name)  # not found: installed in a way of its own, and nothing is before it
        places = [spec.origin] if spec and spec.origin else list((spec and spec.submodule_search_locations) or ())
        for place in places[:1]:
            if not Path(place).resolve().is_relative_to(ours):
                return Path(place)
    return None
