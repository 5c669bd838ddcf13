"""Entry point of the `agentlink` command. A mistake of the user's is one message on stderr, never a traceback."""

from __future__ import annotations

import os
import sys
from pathlib import Path

#: Exit statuses: the second is the shell's own for Ctrl-C. Wrong usage is click's 2.
FAILED, INTERRUPTED = 1, 130


def main() -> None:
    """Run the command that the command line asks for, and end this process."""
    # Like `celery`: modules beside the user can be imported by name.
    sys.path.insert(0, str(Path.cwd()))
    try:
        sys.exit(_main())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Its reader (`head`, say) has seen enough. Nothing is left to be flushed, and nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)


def _main() -> int:
    # Here, so that Ctrl-C while they are imported is no traceback either.
    import click

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
        return FAILED
    return status or 0
