"""Where AgentLink keeps everything: the default folder, which others may be named, and how paths are shown."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from agentlink.units import shown


def default_home() -> Path:
    """In the XDG state folder (https://specifications.freedesktop.org/basedir-spec): it outlives a restart."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if Path(state).is_absolute() else Path("~/.local/state")) / "agentlink"


def checked_home(written: Path) -> Path:
    """The folder as an absolute path; it need not be there yet.

    Raises:
        ValueError: what is wrong, and what would be right.
    """
    text = _without_tilde(written)
    if not written.parts or "\0" in text:
        raise ValueError(f"want a folder, got {shown(text)}")
    if os.fsencode(text) != text.encode(errors="replace"):  # it becomes part of addresses
        raise ValueError(f"want a folder whose name is UTF-8, got {shown(text)}")
    home = Path(os.path.abspath(text))  # noqa: PTH100 - resolve() would follow a user's symlink
    if not _may_be_closed(home):
        raise ValueError(f"want a folder of its own, got {shown(str(home))}")
    return home


def from_home(path: str) -> str:
    """A path as a shell takes it, short enough to stay whole on a line."""
    users = os.path.expanduser("~")  # noqa: PTH111 - text is wanted
    return f"~{path[len(users) :]}" if path.startswith(f"{users}/") else path


def _without_tilde(written: Path) -> str:
    # Python takes whatever HOME says.
    if written.parts[:1] == ("~",) and not Path(os.environ.get("HOME", "/")).is_absolute():
        raise ValueError(f"want HOME to be an absolute path, or AGENTLINK_HOME, got HOME={shown(os.environ['HOME'])}")
    try:
        return str(written.expanduser())
    except RuntimeError:
        raise ValueError(f"want a folder, and there is no user {written.parts[0]}, got {shown(str(written))}") from None


def _may_be_closed(home: Path) -> bool:
    """Whether nobody minds that only this user can open the folder from now on: `/` and `/tmp` are everybody's."""
    try:
        mode = home.stat().st_mode
    except OSError:  # not there yet; whoever makes it says why it can't be made
        return True
    return stat.S_ISDIR(mode) and not mode & stat.S_ISVTX and home != home.parent
